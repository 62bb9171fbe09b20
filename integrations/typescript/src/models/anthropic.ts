import { anthropicToolResult } from '../execute.js'
import type { Call, Message, Model, ModelEvent, ModelOptions, ModelRequest } from '../model.js'
import { anthropicTools, type ToolCall } from '../tools.js'

/** A client of `@anthropic-ai/sdk`. */
export interface AnthropicClient {
  messages: { create: Call }
}

interface StreamEvent {
  type: string
  index?: number
  message?: { usage?: { input_tokens?: number } }
  content_block?: { type: string; id?: string; name?: string; input?: unknown }
  delta?: { type?: string; text?: string; partial_json?: string }
  usage?: { output_tokens?: number }
}

export function anthropicModel(client: AnthropicClient, model: string, options: ModelOptions = {}): Model {
  const { callsTools = true, seesPictures = true, maxTokens = 4096, extra } = options

  async function* stream({ system, messages, tools, signal }: ModelRequest): AsyncGenerator<ModelEvent> {
    const body = {
      ...extra,
      model,
      max_tokens: maxTokens,
      stream: true,
      ...(system ? { system } : {}),
      ...(callsTools ? { tools: anthropicTools(tools) } : {}),
      messages: messages.map((message) => translated(message, seesPictures)),
    }
    const events = (await client.messages.create(body, { signal, maxRetries: 0 })) as AsyncIterable<StreamEvent>
    const open = new Map<number, { id: string; name: string; json: string; input: unknown }>()
    let input = 0
    let output = 0
    for await (const { type, index = 0, message, content_block: block, delta, usage } of events) {
      if (type === 'message_start') {
        input = message?.usage?.input_tokens ?? 0
      } else if (type === 'content_block_start' && block?.type === 'tool_use') {
        open.set(index, { id: block.id ?? '', name: block.name ?? '', json: '', input: block.input ?? {} })
      } else if (type === 'content_block_delta') {
        if (delta?.type === 'text_delta' && delta.text) yield { type: 'text', text: delta.text }
        const call = open.get(index)
        if (delta?.type === 'input_json_delta' && call) call.json += delta.partial_json ?? ''
      } else if (type === 'content_block_stop') {
        const call = open.get(index)
        open.delete(index)
        if (call) {
          const given = call.json === '' ? (call.input as Record<string, unknown>) : call.json
          yield { type: 'call', call: { id: call.id, name: call.name, arguments: given } }
        }
      } else if (type === 'message_delta') {
        output = usage?.output_tokens ?? output
      } else if (type === 'message_stop') {
        yield { type: 'usage', input, output }
        yield { type: 'end' }
      }
    }
  }

  return { callsTools, stream }
}

function translated(message: Message, seesPictures: boolean) {
  switch (message.role) {
    case 'user':
      return { role: 'user', content: message.text }
    case 'assistant':
      return {
        role: 'assistant',
        content: [
          // An empty block of text is refused.
          ...(message.text ? [{ type: 'text', text: message.text }] : []),
          ...message.calls.map((call) => ({ type: 'tool_use', id: call.id, name: call.name, input: inputOf(call) })),
        ],
      }
    case 'tool':
      return {
        role: 'user',
        content: message.results.map((result) =>
          anthropicToolResult(seesPictures ? result : { ...result, pictures: [] }),
        ),
      }
  }
}

/** The wire has only objects: malformed arguments go back as none, and the result says what was wrong with them. */
function inputOf(call: ToolCall): unknown {
  if (typeof call.arguments !== 'string') return call.arguments
  try {
    const input: unknown = JSON.parse(call.arguments)
    return typeof input === 'object' && input !== null && !Array.isArray(input) ? input : {}
  } catch {
    return {}
  }
}
