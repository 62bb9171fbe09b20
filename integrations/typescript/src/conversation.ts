/** A model that works with a sandbox, within limits. */

import {
  abortable,
  type ExecuteOptions,
  execute,
  oneLine,
  type Picture,
  SandboxLostError,
  type ToolResult,
} from './execute.js'
import { FENCED_INSTRUCTIONS, fencedCode } from './fenced.js'
import type { Message, Model } from './model.js'
import { CutStreamError, causeOf, passes, wait } from './retry.js'
import { ConversationSandbox, type SandboxOptions } from './sandbox.js'
import { TOOLS, type ToolCall, type ToolDefinition } from './tools.js'

/** Of one run. */
export interface Limits {
  /** Answers of the model. [20] */
  turns?: number
  /** [600] */
  seconds?: number
  /** In the currency of `prices`. [none] */
  cost?: number
}

/** Of a million tokens. */
export interface Prices {
  input: number
  output: number
}

export type Ending =
  | 'finished'
  | 'turn_limit'
  | 'time_limit'
  | 'cost_limit'
  | 'cancelled'
  | 'provider_failed'
  | 'sandbox_lost'

export interface Outcome {
  readonly ending: Ending
  /** Why it ended otherwise than by a last answer; one line. */
  readonly cause: string | undefined
  /** The model's last answer. */
  readonly text: string
  readonly turns: number
  readonly calls: number
  readonly usage: { readonly input: number; readonly output: number }
  /** Undefined without prices. */
  readonly cost: number | undefined
  readonly pictures: readonly Picture[]
}

export type AgentEvent =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'call_started'; readonly call: ToolCall }
  | { readonly type: 'output'; readonly callId: string; readonly stream: 'stdout' | 'stderr'; readonly text: string }
  | { readonly type: 'picture'; readonly callId: string; readonly picture: Picture }
  | { readonly type: 'call_finished'; readonly call: ToolCall; readonly result: ToolResult }
  | { readonly type: 'retrying'; readonly attempt: number; readonly seconds: number; readonly cause: string }
  | { readonly type: 'ended'; readonly outcome: Outcome }

export interface ConversationOptions {
  model: Model
  /** With an id, the sandbox outlives this object and is found again by it. */
  id?: string
  sandbox?: SandboxOptions
  system?: string
  /** What was said before, e.g. `messages` of a conversation that another process had. */
  messages?: readonly Message[]
  tools?: readonly ToolDefinition[]
  limits?: Limits
  prices?: Prices
  /** How often a provider is asked again that is busy, broken or away. [4] */
  retries?: number
  /** Asked before each call. A text is the reason that the model is told. */
  approve?: (call: ToolCall) => boolean | string | Promise<boolean | string>
  /** Of each call: tokens and pictures of its result, seconds of its run. */
  execute?: Pick<ExecuteOptions, 'resultTokens' | 'pictures' | 'seconds'>
}

export interface RunOptions {
  signal?: AbortSignal
  onEvent?: (event: AgentEvent) => void
}

interface Answer {
  text: string
  calls: ToolCall[]
  input: number
  output: number
}

/** Ends a run in its course; never leaves this module. */
class Stop extends Error {
  constructor(
    readonly ending: Ending,
    cause: string,
  ) {
    super(cause)
  }
}

/**
 * Messages and a sandbox that belong together. `run` and `stream` ask the model, do what it wants done and tell it, until it has
 * its last answer or a limit is met; they always end with an `Outcome` and never throw for what model, provider or sandbox did.
 *
 * A run that does not finish gives its sandbox up at once: killed, or paused when the conversation has an id.
 */
export class Conversation implements AsyncDisposable {
  readonly messages: Message[]
  readonly sandbox: ConversationSandbox
  private readonly limits: Required<Omit<Limits, 'cost'>> & Pick<Limits, 'cost'>
  private running = false

  constructor(private readonly options: ConversationOptions) {
    if (options.limits?.cost !== undefined && !options.prices) throw new TypeError('a limit of cost needs prices')
    this.messages = [...(options.messages ?? [])]
    this.sandbox = new ConversationSandbox(options.id, options.sandbox)
    this.limits = { turns: 20, seconds: 600, ...options.limits }
  }

  async run(prompt: string, { signal, onEvent }: RunOptions = {}): Promise<Outcome> {
    if (this.running) throw new Error('this conversation has a run already')
    this.running = true
    const run = new Run(this.options, this.limits, this.messages, this.sandbox, signal, onEvent)
    try {
      const outcome = await run.perform(prompt)
      if (outcome.ending === 'sandbox_lost') this.sandbox.forget()
      else if (outcome.ending !== 'finished') await this.sandbox.release().catch(() => this.sandbox.forget())
      onEvent?.({ type: 'ended', outcome })
      return outcome
    } finally {
      this.running = false
    }
  }

  /** The same as a stream, whose last event is `ended`. Whoever leaves it early cancels the run. */
  async *stream(prompt: string, options: Pick<RunOptions, 'signal'> = {}): AsyncGenerator<AgentEvent> {
    const left = new AbortController()
    const signal = options.signal ? AbortSignal.any([options.signal, left.signal]) : left.signal
    const events: AgentEvent[] = []
    let wake = () => {}
    let over = false
    const run = this.run(prompt, {
      signal,
      onEvent: (event) => {
        events.push(event)
        wake()
      },
    }).finally(() => {
      over = true
      wake()
    })
    // Awaited below; until then a failure is not unhandled.
    run.catch(() => {})
    try {
      while (true) {
        const event = events.shift()
        if (event) yield event
        else if (over) break
        else {
          await new Promise<void>((resolve) => {
            wake = resolve
          })
        }
      }
    } finally {
      left.abort(new Error('nobody listens any more'))
      await run
    }
  }

  /** Pauses the sandbox, or kills it when the conversation has no id. */
  async close(): Promise<void> {
    await this.sandbox.release()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** The state of one run. */
class Run {
  private turns = 0
  private calls = 0
  private readonly usage = { input: 0, output: 0 }
  private readonly pictures: Picture[] = []
  private text = ''
  private over = false
  private readonly asking = new Turns()
  private readonly interpreter = new Turns()
  private readonly signal: AbortSignal
  private readonly expired: AbortSignal
  private readonly ends: number

  constructor(
    private readonly options: ConversationOptions,
    private readonly limits: Conversation['limits'],
    private readonly messages: Message[],
    private readonly sandbox: ConversationSandbox,
    private readonly cancelled: AbortSignal | undefined,
    private readonly onEvent: RunOptions['onEvent'],
  ) {
    this.ends = Date.now() + limits.seconds * 1000
    this.expired = AbortSignal.timeout(limits.seconds * 1000)
    this.signal = cancelled ? AbortSignal.any([cancelled, this.expired]) : this.expired
  }

  async perform(prompt: string): Promise<Outcome> {
    this.messages.push({ role: 'user', text: prompt })
    try {
      while (await this.turn());
      const talked = !this.options.model.callsTools && this.calls === 0
      return this.outcome('finished', talked ? 'the answer has no code to run' : undefined)
    } catch (error) {
      const { ending, message } = this.reason(error)
      // Providers refuse a history in which somebody was not answered.
      if (this.messages.at(-1)?.role !== 'assistant') {
        this.messages.push({ role: 'assistant', text: `[stopped: ${message}]`, calls: [] })
      }
      return this.outcome(ending, message)
    } finally {
      this.over = true
    }
  }

  /** One answer and what it asks for; false when there is nothing more to do. */
  private async turn(): Promise<boolean> {
    const { model } = this.options
    this.signal.throwIfAborted()
    const answer = await this.ask()
    this.turns += 1
    this.usage.input += answer.input
    this.usage.output += answer.output
    this.text = answer.text
    const calls = model.callsTools ? answer.calls : blocks(answer.text, this.calls)
    if (calls.length === 0) {
      this.messages.push({ role: 'assistant', text: answer.text, calls: [] })
      return false
    }
    this.checkLimits()
    let results: ToolResult[]
    try {
      results = await Promise.all(calls.map((call) => this.call(call)))
    } catch (error) {
      this.messages.push({ role: 'assistant', text: answer.text || '[a call of a tool]', calls: [] })
      throw error
    }
    this.messages.push({ role: 'assistant', text: answer.text, calls: model.callsTools ? calls : [] })
    this.messages.push(model.callsTools ? { role: 'tool', results } : { role: 'user', text: outputs(results) })
    return true
  }

  /** Before calls whose results would cost another answer. */
  private checkLimits(): void {
    const { turns, cost } = this.limits
    if (this.turns >= turns) throw new Stop('turn_limit', `not done after ${turns} answers`)
    const spent = this.cost()
    if (cost !== undefined && spent !== undefined && spent >= cost) {
      throw new Stop('cost_limit', `${spent.toFixed(4)} of ${cost} are spent`)
    }
  }

  private async call(call: ToolCall): Promise<ToolResult> {
    this.calls += 1
    this.emit({ type: 'call_started', call })
    const result = await this.approvedResult(call)
    for (const picture of result.pictures) {
      this.pictures.push(picture)
      this.emit({ type: 'picture', callId: call.id, picture })
    }
    this.emit({ type: 'call_finished', call, result })
    return result
  }

  private async approvedResult(call: ToolCall): Promise<ToolResult> {
    const { approve } = this.options
    // One question at a time, in the order of the calls.
    const approved = approve ? await this.asking.turn(this.signal, () => approve(call)) : true
    if (approved !== true) {
      const why = typeof approved === 'string' ? `: ${approved}` : ''
      return { callId: call.id, name: call.name, text: `not approved${why}`, pictures: [], failed: true }
    }
    // Pieces of code share variables, so their order matters, and one that waited inside would use up its own time.
    return call.name === 'run_code'
      ? this.interpreter.turn(this.signal, () => this.executed(call))
      : this.executed(call)
  }

  private async executed(call: ToolCall): Promise<ToolResult> {
    const { tools } = this.options
    // Code that would outlast the run is interrupted at its end, which keeps the variables that a restart would lose.
    const seconds = Math.min(this.options.execute?.seconds ?? 60, Math.max(0.001, (this.ends - Date.now()) / 1000))
    const sandbox = await abortable(this.sandbox.open(seconds), this.signal)
    return execute(sandbox, call, {
      ...this.options.execute,
      ...(tools ? { tools } : {}),
      seconds,
      signal: this.signal,
      onOutput: (stream, text) => this.emit({ type: 'output', callId: call.id, stream, text }),
    })
  }

  /** An answer of the model; asks again while that may help and nothing of the answer was passed on. */
  private async ask(): Promise<Answer> {
    for (let attempt = 0; ; attempt++) {
      const answer: Answer = { text: '', calls: [], input: 0, output: 0 }
      try {
        await this.hear(answer)
        return answer
      } catch (error) {
        if (this.signal.aborted) throw error
        const cause = causeOf(error)
        if (answer.text !== '' || !passes(error)) throw new Stop('provider_failed', cause)
        if (attempt >= (this.options.retries ?? 4)) {
          throw new Stop('provider_failed', `${cause} (asked ${attempt + 1} times)`)
        }
        const seconds = wait(error, attempt)
        if (Date.now() + seconds * 1000 > this.ends) {
          throw new Stop(
            'provider_failed',
            `${cause} (asking again in ${Math.ceil(seconds)} s is past the limit of time)`,
          )
        }
        this.emit({ type: 'retrying', attempt: attempt + 1, seconds, cause })
        await abortable(new Promise((resolve) => setTimeout(resolve, seconds * 1000)), this.signal)
      }
    }
  }

  private async hear(answer: Answer): Promise<void> {
    const { model, system = '', tools = TOOLS } = this.options
    const instructions = model.callsTools ? system : [system, FENCED_INSTRUCTIONS].filter(Boolean).join('\n\n')
    const request = { system: instructions, messages: this.messages, tools, signal: this.signal }
    const events = model.stream(request)[Symbol.asyncIterator]()
    let ended = false
    try {
      while (true) {
        const next = await abortable(events.next(), this.signal)
        if (next.done) break
        const event = next.value
        if (event.type === 'text') {
          answer.text += event.text
          this.emit(event)
        } else if (event.type === 'call') {
          answer.calls.push(event.call)
        } else if (event.type === 'usage') {
          answer.input = event.input
          answer.output = event.output
        } else {
          ended = true
        }
      }
    } finally {
      // Not awaited: a generator that waits for its provider is not left before the provider speaks.
      if (!ended) Promise.resolve(events.return?.()).catch(() => {})
    }
    if (!ended) throw new CutStreamError('the answer was cut: its stream ended before it did')
  }

  private reason(error: unknown): { ending: Ending; message: string } {
    if (error instanceof Stop) return error
    if (this.cancelled?.aborted) return { ending: 'cancelled', message: oneLine(this.cancelled.reason) }
    if (this.expired.aborted) return { ending: 'time_limit', message: `not done after ${this.limits.seconds} s` }
    if (error instanceof SandboxLostError) return { ending: 'sandbox_lost', message: oneLine(error) }
    // A hook of the caller, or a mistake of ours: neither is an outcome.
    throw error
  }

  private cost(): number | undefined {
    const { prices } = this.options
    if (!prices) return undefined
    return (this.usage.input * prices.input + this.usage.output * prices.output) / 1e6
  }

  private outcome(ending: Ending, cause: string | undefined): Outcome {
    const { text, turns, calls, usage, pictures } = this
    return { ending, cause, text, turns, calls, usage, cost: this.cost(), pictures }
  }

  private emit(event: AgentEvent): void {
    if (!this.over) this.onEvent?.(event)
  }
}

/** Lets one after the other do something, in the order in which they came. */
class Turns {
  private last: Promise<unknown> = Promise.resolve()

  turn<T>(signal: AbortSignal, work: () => T | Promise<T>): Promise<T> {
    const mine = this.last.then(() => {
      signal.throwIfAborted()
      return work()
    })
    this.last = mine.catch(() => {})
    return abortable(mine, signal)
  }
}

function blocks(text: string, before: number): ToolCall[] {
  return fencedCode(text).map(({ language, code }, index) => ({
    id: `block_${before + index + 1}`,
    name: 'run_code',
    arguments: { code, language },
  }))
}

function outputs(results: readonly ToolResult[]): string {
  return results.map(({ text }, index) => `Output of block ${index + 1} of ${results.length}:\n${text}`).join('\n\n')
}
