import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { convertToModelMessages, isStepCount, streamText } from 'ai'
import { type ChatMessage, toolsOf } from '../../tools'

// Seconds: a request lasts as long as the model and its code.
export const maxDuration = 60

export async function POST(request: Request) {
  const { id, messages }: { id?: unknown; messages: ChatMessage[] } = await request.json()
  // Whoever knows the id of a chat works in its sandbox. Where users sign in, look up here that the chat is this user's.
  if (typeof id !== 'string' || !/^[\w-]{16,64}$/.test(id)) return new Response('this is no id of a chat', { status: 400 })
  const provider = createOpenAICompatible({
    name: 'provider',
    baseURL: process.env.MODEL_BASE_URL ?? '',
    apiKey: process.env.MODEL_API_KEY,
  })
  const tools = toolsOf(id)
  const result = streamText({
    model: provider(process.env.MODEL ?? ''),
    instructions: 'You can run code in a sandbox. Make charts with matplotlib.',
    messages: await convertToModelMessages(messages, { tools }),
    tools,
    stopWhen: isStepCount(10),
    abortSignal: request.signal,
  })
  return result.toUIMessageStreamResponse({ onError: (error) => (error instanceof Error ? error.message : String(error)) })
}
