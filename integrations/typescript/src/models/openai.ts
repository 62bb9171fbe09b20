import { openaiPictures, openaiToolMessage } from '../execute.js'
import {
  type Call,
  type Message,
  type Model,
  type ModelEvent,
  type ModelOptions,
  type ModelRequest,
  Pieces,
} from '../model.js'
import { openaiTools, type ToolCall } from '../tools.js'

/** A client of `openai`, `groq-sdk` or `together-ai`: any whose chat API has OpenAI's shape. */
export interface ChatClient {
  chat: { completions: { create: Call } }
}

export interface Chunk {
  choices?: {
    delta?: {
      content?: string | null
      tool_calls?: { index?: number; id?: string; function?: { name?: string; arguments?: unknown } }[] | null
    }
    finish_reason?: string | null
  }[]
  usage?: Usage | null
  x_groq?: { usage?: Usage }
}

interface Usage {
  prompt_tokens?: number
  completion_tokens?: number
}

export function openaiModel(client: ChatClient, model: string, options: ModelOptions = {}): Model {
  const { callsTools = true, seesPictures = false, maxTokens, extra } = options

  async function* stream({ system, messages, tools, signal }: ModelRequest): AsyncGenerator<ModelEvent> {
    const body = {
      stream_options: { include_usage: true },
      ...extra,
      model,
      stream: true,
      ...(maxTokens ? { max_tokens: maxTokens } : {}),
      ...(callsTools ? { tools: openaiTools(tools) } : {}),
      messages: chatMessages(system, messages, seesPictures),
    }
    const chunks = (await client.chat.completions.create(body, { signal, maxRetries: 0 })) as AsyncIterable<Chunk>
    yield* chatEvents(chunks)
  }

  return { callsTools, stream }
}

/** Chunks in OpenAI's shape, which WatsonX's have too. */
export async function* chatEvents(chunks: AsyncIterable<Chunk>): AsyncGenerator<ModelEvent> {
  const pieces = new Pieces()
  let usage: Usage | undefined
  let finished = false
  for await (const chunk of chunks) {
    const choice = chunk.choices?.[0]
    if (choice?.delta?.content) yield { type: 'text', text: choice.delta.content }
    for (const piece of choice?.delta?.tool_calls ?? []) {
      pieces.add({ index: piece.index, id: piece.id, ...piece.function })
    }
    if (choice?.finish_reason) finished = true
    usage = chunk.usage ?? chunk.x_groq?.usage ?? usage
  }
  if (!finished) return
  yield* pieces.whole()
  yield { type: 'usage', input: usage?.prompt_tokens ?? 0, output: usage?.completion_tokens ?? 0 }
  yield { type: 'end' }
}

export function chatMessages(system: string, messages: readonly Message[], seesPictures: boolean): unknown[] {
  const said = messages.flatMap((message) => chatMessage(message, seesPictures))
  return system ? [{ role: 'system', content: system }, ...said] : said
}

function chatMessage(message: Message, seesPictures: boolean): unknown[] {
  switch (message.role) {
    case 'user':
      return [{ role: 'user', content: message.text }]
    case 'assistant':
      return [assistantMessage(message.text, message.calls)]
    case 'tool': {
      const pictures = openaiPictures(message.results)
      const shown = seesPictures && pictures.content.length > 0 ? [pictures] : []
      return [...message.results.map(openaiToolMessage), ...shown]
    }
  }
}

function assistantMessage(text: string, calls: readonly ToolCall[]) {
  if (calls.length === 0) return { role: 'assistant', content: text }
  return {
    role: 'assistant',
    content: text,
    tool_calls: calls.map((call) => ({
      id: call.id,
      type: 'function',
      function: { name: call.name, arguments: argumentsText(call) },
    })),
  }
}

/** Servers that check their input refuse arguments that are no JSON, also of what their own model said before. */
export function argumentsText(call: ToolCall): string {
  if (typeof call.arguments !== 'string') return JSON.stringify(call.arguments)
  try {
    JSON.parse(call.arguments)
    return call.arguments
  } catch {
    return '{}'
  }
}
