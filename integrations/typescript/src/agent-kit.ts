/** Tools for agents of Inngest's AgentKit. */

import { Sandbox } from '@e2b/code-interpreter'
import { createTool, type Tool } from '@inngest/agent-kit'
import { z } from 'zod'
import { type ExecuteOptions, execute } from './execute.js'
import type { ConversationSandbox } from './sandbox.js'
import { TOOLS } from './tools.js'

/** What a call gives: AgentKit hands text on to the model, and keeps all of it in the network's results. */
export type AgentKitOptions = Omit<ExecuteOptions, 'signal' | 'onOutput'>

/** Tools that work in one sandbox, for `createAgent({ tools })`. */
export function soulboxTools(sandbox: Sandbox | ConversationSandbox, options: AgentKitOptions = {}): Tool.Any[] {
  return (options.tools ?? TOOLS).map(({ name, description, parameters }) => {
    const { properties, required } = parameters
    const shape = Object.fromEntries(
      Object.entries(properties).map(([key, property]) => {
        const text = z.string().describe(property.description)
        return [key, required.includes(key) ? text : text.optional()]
      }),
    )
    let calls = 0
    return createTool({
      name,
      description,
      parameters: z.object(shape),
      handler: async (input) => {
        const opened = sandbox instanceof Sandbox ? sandbox : await sandbox.open(options.seconds)
        calls += 1
        const result = await execute(opened, { id: `${name}_${calls}`, name, arguments: input }, options)
        return result.failed ? `failed: ${result.text}` : result.text
      },
    })
  })
}
