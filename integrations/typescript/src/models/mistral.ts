import type { Picture } from '../execute.js'
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
import { argumentsText } from './openai.js'

/** A client of `@mistralai/mistralai`. */
export interface MistralClient {
  chat: { stream: Call }
}

interface Event {
  data: {
    choices: {
      delta: {
        content?: string | { type: string; text?: string }[] | null
        toolCalls?: { index?: number; id?: string; function: { name: string; arguments: unknown } }[] | null
      }
      finishReason: string | null
    }[]
    usage?: { promptTokens?: number; completionTokens?: number }
  }
}

export function mistralModel(client: MistralClient, model: string, options: ModelOptions = {}): Model {
  const { callsTools = true, seesPictures = false, maxTokens, extra } = options

  async function* stream({ system, messages, tools, signal }: ModelRequest): AsyncGenerator<ModelEvent> {
    const body = {
      ...extra,
      model,
      ...(maxTokens ? { maxTokens } : {}),
      ...(callsTools ? { tools: openaiTools(tools) } : {}),
      messages: [
        ...(system ? [{ role: 'system', content: system }] : []),
        ...messages.flatMap((message) => translated(message, seesPictures)),
      ],
    }
    const options = { signal, fetchOptions: { signal }, retries: { strategy: 'none' } }
    const events = (await client.chat.stream(body, options)) as AsyncIterable<Event>
    const pieces = new Pieces()
    let usage: Event['data']['usage']
    let finished = false
    for await (const { data } of events) {
      const choice = data.choices[0]
      const content = choice?.delta.content ?? ''
      const text = typeof content === 'string' ? content : content.map((chunk) => chunk.text ?? '').join('')
      if (text) yield { type: 'text', text }
      for (const piece of choice?.delta.toolCalls ?? []) {
        // The client fills in "null" where a later piece of a call has no id.
        const id = piece.id === 'null' ? undefined : piece.id
        pieces.add({ index: piece.index, id, ...piece.function })
      }
      if (choice?.finishReason) finished = true
      usage = data.usage ?? usage
    }
    if (!finished) return
    yield* pieces.whole()
    yield { type: 'usage', input: usage?.promptTokens ?? 0, output: usage?.completionTokens ?? 0 }
    yield { type: 'end' }
  }

  return { callsTools, stream }
}

function translated(message: Message, seesPictures: boolean): unknown[] {
  switch (message.role) {
    case 'user':
      return [{ role: 'user', content: message.text }]
    case 'assistant': {
      const calls = message.calls.length > 0 ? { toolCalls: message.calls.map(toolCall) } : {}
      return [{ role: 'assistant', content: message.text, ...calls }]
    }
    case 'tool':
      // Here, unlike with OpenAI, a result itself can hold pictures, and nobody may speak between results and the answer.
      return message.results.map(({ callId, name, text, pictures }) => ({
        role: 'tool',
        toolCallId: callId,
        name,
        content: [{ type: 'text', text }, ...(seesPictures ? pictures.map(pictureChunk) : [])],
      }))
  }
}

function pictureChunk({ mediaType, data }: Picture) {
  return { type: 'image_url', imageUrl: `data:${mediaType};base64,${data}` }
}

function toolCall(call: ToolCall) {
  return { id: call.id, type: 'function', function: { name: call.name, arguments: argumentsText(call) } }
}
