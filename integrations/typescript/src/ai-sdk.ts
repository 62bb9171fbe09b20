/** Tools for `generateText` and `streamText` of Vercel's AI SDK. */

import { Sandbox } from '@e2b/code-interpreter'
import { jsonSchema, type Tool, tool } from 'ai'
import { type ExecuteOptions, execute, type Picture } from './execute.js'
import type { ConversationSandbox } from './sandbox.js'
import { TOOLS, type ToolDefinition, type ToolName } from './tools.js'

export interface AiSdkOptions extends Omit<ExecuteOptions, 'signal' | 'onOutput'> {
  /** Whether charts are shown to the model: not every provider takes pictures in results of tools. [false] */
  seesPictures?: boolean
  /** Calls that a user has to approve, in the SDK's own way. [none] */
  needsApproval?: boolean
}

/** What a call gives, to the model and to a page that shows it. */
export interface SoulBoxOutput {
  readonly text: string
  readonly failed: boolean
  readonly pictures: readonly Picture[]
}

export type SoulBoxTools = Record<ToolName, Tool<Record<string, string>, SoulBoxOutput>>

/** A set of tools that work in one sandbox. */
export function soulboxTools(sandbox: Sandbox | ConversationSandbox, options: AiSdkOptions = {}): SoulBoxTools {
  const { tools = TOOLS, seesPictures = false, needsApproval = false } = options
  const made = (definition: ToolDefinition) =>
    tool({
      description: definition.description,
      inputSchema: jsonSchema<Record<string, string>>(definition.parameters as never),
      needsApproval,
      execute: async (input, { toolCallId, abortSignal }): Promise<SoulBoxOutput> => {
        const opened = sandbox instanceof Sandbox ? sandbox : await sandbox.open(options.seconds)
        const call = { id: toolCallId, name: definition.name, arguments: input }
        const result = await execute(opened, call, { ...options, ...(abortSignal ? { signal: abortSignal } : {}) })
        return { text: result.text, failed: result.failed, pictures: result.pictures }
      },
      toModelOutput: ({ output: { text, failed, pictures } }) => {
        if (failed) return { type: 'error-text', value: text }
        if (!seesPictures || pictures.length === 0) return { type: 'text', value: text }
        return {
          type: 'content',
          value: [
            { type: 'text', text },
            ...pictures.map(({ mediaType, data }) => ({
              type: 'file' as const,
              mediaType,
              data: { type: 'data' as const, data },
            })),
          ],
        }
      },
    })
  return Object.fromEntries(tools.map((definition) => [definition.name, made(definition)])) as SoulBoxTools
}
