/** A call becomes a result: the one place where a sandbox is asked for anything that a model wants. */

import {
  CommandExitError,
  type Execution,
  FileNotFoundError,
  type Result,
  type Sandbox,
  TimeoutError,
} from '@e2b/code-interpreter'
import { cut } from './budget.js'
import { parseArguments, TOOLS, type ToolCall, type ToolDefinition } from './tools.js'

export interface Picture {
  readonly mediaType: 'image/png' | 'image/jpeg'
  /** base64 */
  readonly data: string
  /** What the chart shows, where the server could tell: type, title, axes, values. */
  readonly chart?: unknown
}

export interface ToolResult {
  readonly callId: string
  readonly name: string
  /** What the model is told, within its budget. */
  readonly text: string
  readonly pictures: readonly Picture[]
  readonly failed: boolean
  /** Everything that the code gave, uncut. */
  readonly execution?: Execution
}

export interface ExecuteOptions {
  /** Of a result's text. [4000] */
  resultTokens?: number
  /** Pictures of one result; those beyond are left out, which the text says. [4] */
  pictures?: number
  /** For which code and commands run at most. [60] */
  seconds?: number
  signal?: AbortSignal
  tools?: readonly ToolDefinition[]
  onOutput?: (stream: 'stdout' | 'stderr', text: string) => void
}

/** The sandbox was killed, expired, or cannot be reached: no further call will do better. */
export class SandboxLostError extends Error {
  override readonly name = 'SandboxLostError'
}

/**
 * Does what a model asked for. What its code does wrong, a file that is not there, malformed arguments, too long a run: all are
 * results that say so.
 *
 * Throws `SandboxLostError`, and the signal's reason when it was aborted. Code that runs then is interrupted: a restart of its
 * notebook is the only way that the package has, so variables are lost.
 */
export async function execute(sandbox: Sandbox, call: ToolCall, options: ExecuteOptions = {}): Promise<ToolResult> {
  const { resultTokens = 4000, signal } = options
  const refused = (why: string): ToolResult => ({
    callId: call.id,
    name: call.name,
    text: cut(why, resultTokens),
    pictures: [],
    failed: true,
  })
  signal?.throwIfAborted()
  const given = parseArguments(call, options.tools ?? TOOLS)
  if (typeof given === 'string') return refused(given)
  const seconds = options.seconds ?? 60
  const perform = performers[call.name as keyof typeof performers]
  try {
    const done = await abortable(perform(sandbox, given, { ...options, seconds }), signal)
    const { pictures = [], text, ...rest } = done
    const shown = pictures.slice(0, options.pictures ?? 4)
    const hidden = pictures.length - shown.length
    const note = hidden > 0 ? `\n[${hidden} of ${pictures.length} pictures are left out here]` : ''
    return {
      callId: call.id,
      name: call.name,
      failed: false,
      ...rest,
      text: cut(text, resultTokens) + note,
      pictures: shown,
    }
  } catch (error) {
    if (signal?.aborted) {
      if (call.name === 'run_code') await interrupt(sandbox)
      throw signal.reason
    }
    if (error instanceof CommandExitError) {
      return refused(joined([error.stdout, error.stderr, `exit code ${error.exitCode}`]))
    }
    if (error instanceof FileNotFoundError) return refused(oneLine(error))
    if (!(await alive(sandbox))) throw new SandboxLostError(`the sandbox is gone: ${oneLine(error)}`, { cause: error })
    if (error instanceof TimeoutError) return refused(`stopped: it had not ended after ${seconds} s`)
    return refused(oneLine(error))
  }
}

interface Done {
  text: string
  failed?: boolean
  pictures?: Picture[]
  execution?: Execution
}

type Performer = (
  sandbox: Sandbox,
  given: Record<string, string>,
  options: ExecuteOptions & { seconds: number },
) => Promise<Done>

const performers: Record<ToolDefinition['name'], Performer> = {
  async run_code(sandbox, { code = '', language }, { seconds, onOutput }) {
    const execution = await sandbox.runCode(code, {
      timeoutMs: seconds * 1000,
      // The answer's head comes when this code's turn has come, and calls at once wait for each other.
      requestTimeoutMs: seconds * 1000,
      onStdout: (message) => onOutput?.('stdout', message.line),
      onStderr: (message) => onOutput?.('stderr', message.line),
      ...(language === undefined ? {} : { language }),
    })
    return described(execution)
  },

  async run_command(sandbox, { command = '' }, { seconds, signal, onOutput }) {
    const { stdout, stderr } = await sandbox.commands.run(command, {
      timeoutMs: seconds * 1000,
      ...(signal ? { signal } : {}),
      onStdout: (text) => onOutput?.('stdout', text),
      onStderr: (text) => onOutput?.('stderr', text),
    })
    return { text: joined([stdout, stderr]) || 'no output' }
  },

  async read_file(sandbox, { path = '' }) {
    // Providers refuse results without text.
    return { text: (await sandbox.files.read(path)) || 'the file is empty' }
  },

  async write_file(sandbox, { path = '', content = '' }) {
    const written = await sandbox.files.write(path, content)
    return { text: `wrote ${written.path}` }
  },

  async list_files(sandbox, { path = '.' }) {
    const entries = await sandbox.files.list(path)
    const lines = entries.map(({ name, type, size }) => (type === 'dir' ? `${name}/` : `${name}  ${size} bytes`))
    return { text: lines.join('\n') || 'the folder is empty' }
  },
}

/** What a model is told of an execution: output, values, and of an error its one line. */
function described(execution: Execution): Done {
  const { logs, results, error } = execution
  const parts = [logs.stdout.join(''), logs.stderr.join(''), ...results.map(text)]
  if (error) parts.push(error.name ? `${error.name}: ${error.value}` : `failed: ${error.value}`)
  return {
    text: joined(parts) || 'no output',
    failed: error !== undefined,
    pictures: results.flatMap(picture),
    execution,
  }
}

function text(result: Result): string {
  // Of a picture, the text is the name of an object in memory.
  if (picture(result).length > 0)
    return result.chart ? `[chart: ${result.chart.title ?? result.chart.type}]` : '[picture]'
  return result.text ?? result.markdown ?? result.latex ?? result.svg ?? result.html ?? ''
}

function picture(result: Result): Picture[] {
  const { png, jpeg, chart } = result
  const rest = chart ? { chart } : {}
  if (png) return [{ mediaType: 'image/png', data: png, ...rest }]
  if (jpeg) return [{ mediaType: 'image/jpeg', data: jpeg, ...rest }]
  return []
}

function joined(parts: readonly string[]): string {
  return parts
    .map((part) => part.replace(/\n+$/, ''))
    .filter((part) => part !== '')
    .join('\n')
}

export function oneLine(error: unknown): string {
  const message = error instanceof Error ? error.message || error.name : String(error)
  return message.split('\n', 1)[0] ?? message
}

async function alive(sandbox: Sandbox): Promise<boolean> {
  try {
    return await sandbox.isRunning({ requestTimeoutMs: 5000 })
  } catch {
    return false
  }
}

/** Ends what runs in the sandbox's notebooks. Where that fails the sandbox is gone, or going. */
async function interrupt(sandbox: Sandbox): Promise<void> {
  try {
    const contexts = await sandbox.listCodeContexts()
    await Promise.all(contexts.map((context) => sandbox.restartCodeContext(context)))
  } catch {
    // Whoever cancels is not told of it: the next call finds out, and says so.
  }
}

/** Of the two that comes first. What is left behind is nobody's, so its failure is heard by nobody. */
export function abortable<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason)
    signal.addEventListener('abort', aborted, { once: true })
    if (signal.aborted) aborted()
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted))
  })
}

/** A result as Anthropic's messages API takes it: a block of a user's message. */
export function anthropicToolResult(result: ToolResult) {
  return {
    type: 'tool_result' as const,
    tool_use_id: result.callId,
    is_error: result.failed,
    content: [
      { type: 'text' as const, text: result.text },
      ...result.pictures.map(({ mediaType, data }) => ({
        type: 'image' as const,
        source: { type: 'base64' as const, media_type: mediaType, data },
      })),
    ],
  }
}

/** A result as OpenAI's chat API takes it; pictures cannot be in it, see `openaiPictures`. */
export function openaiToolMessage(result: ToolResult) {
  return { role: 'tool' as const, tool_call_id: result.callId, content: result.text }
}

/** Pictures of results, as a user's message for models that see; follows all tool messages of the turn. */
export function openaiPictures(results: readonly ToolResult[]) {
  return {
    role: 'user' as const,
    content: results.flatMap(({ name, pictures }) =>
      pictures.flatMap(({ mediaType, data }) => [
        { type: 'text' as const, text: `Made by ${name}:` },
        { type: 'image_url' as const, image_url: { url: `data:${mediaType};base64,${data}` } },
      ]),
    ),
  }
}
