/** One sandbox for one conversation, found again by whoever knows the conversation's id. */

import { Sandbox, type SandboxInfo, type SandboxOpts } from '@e2b/code-interpreter'
import { oneLine, SandboxLostError } from './execute.js'

/** The key of the sandbox's metadata under which the conversation's id stands. */
export const CONVERSATION_KEY = 'soulboxConversation'

export interface SandboxOptions {
  /** [what the environment's SOULBOX_TEMPLATE says, else what the code interpreter's package takes] */
  template?: string | undefined
  /** After which time without a call it is paused, or killed when the conversation has no id. [300] */
  idleSeconds?: number
  /** Whatever else `Sandbox.create` takes: key, address, environment, metadata, network. */
  create?: SandboxOpts
}

/**
 * Made, found or resumed when it is first wanted.
 *
 * With an id, the sandbox is paused when it is idle, by the server, so that it needs nobody who remembers; processes and
 * variables are kept. Without one it is killed.
 */
export class ConversationSandbox {
  private opened: Promise<Sandbox> | undefined
  private deadline = 0

  constructor(
    readonly id?: string,
    private readonly options: SandboxOptions = {},
  ) {}

  /** The sandbox, good for work that takes `seconds`. Throws `SandboxLostError` when there can be none. */
  async open(seconds = 60): Promise<Sandbox> {
    const lifetime = 1000 * ((this.options.idleSeconds ?? 300) + seconds)
    try {
      if (!this.opened) {
        this.deadline = Date.now() + lifetime
        this.opened = this.id === undefined ? this.make(lifetime) : this.findOrMake(this.id, lifetime)
      }
      const sandbox = await this.opened
      if (this.deadline - Date.now() < 1000 * seconds + lifetime / 4) {
        await sandbox.setTimeout(lifetime)
        this.deadline = Date.now() + lifetime
      }
      return sandbox
    } catch (error) {
      this.forget()
      throw new SandboxLostError(`there is no sandbox: ${oneLine(error)}`, { cause: error })
    }
  }

  /** What is known of a sandbox that is gone. */
  forget(): void {
    this.opened = undefined
  }

  /** Nobody works in it for now: it is paused, or killed when the conversation has no id. */
  async release(): Promise<void> {
    await this.finish((sandbox) => (this.id === undefined ? sandbox.kill() : sandbox.pause()))
  }

  /** The conversation is over. Also a sandbox that is paused, or that another process made, is ended. */
  async kill(): Promise<void> {
    await this.finish((sandbox) => sandbox.kill())
    if (this.id === undefined) return
    for (const { sandboxId } of await this.all(this.id)) await Sandbox.kill(sandboxId, this.options.create)
  }

  private async finish(end: (sandbox: Sandbox) => Promise<unknown>): Promise<void> {
    const opened = this.opened
    this.forget()
    if (!opened) return
    let sandbox: Sandbox
    try {
      sandbox = await opened
    } catch {
      // There never was one.
      return
    }
    try {
      await end(sandbox)
    } catch (error) {
      // Ended by somebody else meanwhile: that is what was wanted.
      if (await sandbox.isRunning().catch(() => false)) throw error
    }
  }

  private make(timeoutMs: number): Promise<Sandbox> {
    const { template = process.env.SOULBOX_TEMPLATE || undefined, create = {} } = this.options
    const options: SandboxOpts = { ...create, timeoutMs }
    if (this.id !== undefined) {
      options.metadata = { ...create.metadata, [CONVERSATION_KEY]: this.id }
      options.lifecycle = { onTimeout: 'pause' }
    }
    return template === undefined ? Sandbox.create(options) : Sandbox.create(template, options)
  }

  private async findOrMake(id: string, timeoutMs: number): Promise<Sandbox> {
    const [known] = await this.all(id)
    if (known) return this.connect(known, timeoutMs)
    const start = performance.now()
    const made = await this.make(timeoutMs)
    // Two requests of one conversation at once each find none and make one. A sandbox is listed when it runs, so the other's is
    // waited for as long as one takes; then both see both, and take the older.
    await new Promise((resolve) => setTimeout(resolve, Math.max(50, 2 * (performance.now() - start))))
    const [first] = await this.all(id)
    if (!first || first.sandboxId === made.sandboxId) return made
    await made.kill()
    return this.connect(first, timeoutMs)
  }

  private connect({ sandboxId }: SandboxInfo, timeoutMs: number): Promise<Sandbox> {
    return Sandbox.connect(sandboxId, { ...this.options.create, timeoutMs })
  }

  /** Those of the conversation, the oldest first. */
  private async all(id: string): Promise<SandboxInfo[]> {
    const query = { metadata: { [CONVERSATION_KEY]: id }, state: ['running' as const, 'paused' as const] }
    const pages = Sandbox.list({ ...this.options.create, query })
    const found: SandboxInfo[] = []
    while (pages.hasNext) found.push(...(await pages.nextItems()))
    const order = (info: SandboxInfo) => `${info.startedAt.toISOString()} ${info.sandboxId}`
    return found.sort((a, b) => (order(a) < order(b) ? -1 : 1))
  }
}
