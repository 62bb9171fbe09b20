import { ConversationSandbox } from '@soulbox/agents'
import { soulboxTools } from '@soulbox/agents/ai-sdk'
import type { InferUITools, UIMessage } from 'ai'

/** The sandbox of a chat: made by its first call, found again by every later request, paused by the server when it is idle. */
export function toolsOf(chat: string) {
  return soulboxTools(new ConversationSandbox(chat, { idleSeconds: 300 }))
}

export type ChatMessage = UIMessage<unknown, never, InferUITools<ReturnType<typeof toolsOf>>>
