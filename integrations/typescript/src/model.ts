/** What the loop needs of a model, whoever provides it. */

import type { ToolResult } from './execute.js'
import type { ToolCall, ToolDefinition } from './tools.js'

export type Message =
  | { readonly role: 'user'; readonly text: string }
  | { readonly role: 'assistant'; readonly text: string; readonly calls: readonly ToolCall[] }
  | { readonly role: 'tool'; readonly results: readonly ToolResult[] }

export interface ModelRequest {
  readonly system: string
  readonly messages: readonly Message[]
  readonly tools: readonly ToolDefinition[]
  readonly signal: AbortSignal
}

/** What comes of a model, as it comes. A call comes when it is whole. */
export type ModelEvent =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'call'; readonly call: ToolCall }
  | { readonly type: 'usage'; readonly input: number; readonly output: number }
  /** Its last word: a stream without one was cut. */
  | { readonly type: 'end' }

/** A provider's client and a model of it. Does not retry by itself: the loop does. */
export interface Model {
  /** Without: code is found in fenced blocks of the model's text. */
  readonly callsTools: boolean
  stream(request: ModelRequest): AsyncIterable<ModelEvent>
}

export interface ModelOptions {
  /** For models that call none, such as Codestral and Granite: false. [true] */
  callsTools?: boolean
  /** Whether charts are shown to it. Anthropic's do [true], of others it depends on the model [false]. */
  seesPictures?: boolean
  /** Of one answer. */
  maxTokens?: number
  /** Sent with every request as it is, e.g. `temperature` by the provider's own name. */
  extra?: Readonly<Record<string, unknown>>
}

/**
 * A method of an official client. Their own types are overloads over long unions that differ with every release; what is read
 * and sent is checked against a server in the tests.
 */
// biome-ignore lint/suspicious/noExplicitAny: see above
export type Call = (body: any, options?: any) => PromiseLike<unknown>

/** Calls of a stream in OpenAI's shape, put together from their pieces. */
export class Pieces {
  private readonly calls = new Map<number, { id: string; name: string; arguments: string }>()

  add(piece: {
    index?: number | undefined
    id?: string | undefined
    name?: string | undefined
    arguments?: unknown
  }): void {
    // A piece that names an id without an index is a call by itself.
    const index = piece.index ?? (piece.id ? this.calls.size : this.calls.size - 1)
    const call = this.calls.get(index) ?? { id: '', name: '', arguments: '' }
    this.calls.set(index, call)
    if (piece.id) call.id = piece.id
    if (piece.name) call.name = piece.name
    if (typeof piece.arguments === 'string') call.arguments += piece.arguments
    else if (piece.arguments) call.arguments = JSON.stringify(piece.arguments)
  }

  whole(): ModelEvent[] {
    return [...this.calls.values()].map((call, index) => ({
      type: 'call',
      call: { ...call, id: call.id || `call_${index}` },
    }))
  }
}
