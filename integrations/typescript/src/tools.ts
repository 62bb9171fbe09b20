/** What a model may call, in each provider's own shape. */

/** A tool as a model is told of it; `parameters` is a JSON Schema. */
export interface ToolDefinition {
  readonly name: ToolName
  readonly description: string
  readonly parameters: {
    readonly type: 'object'
    readonly properties: Readonly<Record<string, { type: 'string'; description: string }>>
    readonly required: readonly string[]
    readonly additionalProperties: false
  }
}

export type ToolName = 'run_code' | 'run_command' | 'read_file' | 'write_file' | 'list_files'

function define(
  name: ToolName,
  description: string,
  required: Record<string, string>,
  optional: Record<string, string> = {},
): ToolDefinition {
  const properties: Record<string, { type: 'string'; description: string }> = {}
  for (const [key, text] of Object.entries({ ...required, ...optional })) {
    properties[key] = { type: 'string', description: text }
  }
  return {
    name,
    description,
    parameters: { type: 'object', properties, required: Object.keys(required), additionalProperties: false },
  }
}

export const TOOLS: readonly ToolDefinition[] = [
  define(
    'run_code',
    'Run code in a notebook that keeps its state between calls. Answers what it printed, the value of the last expression, and charts.',
    { code: 'The code of one cell' },
    { language: 'python (the default), javascript, typescript or bash' },
  ),
  define('run_command', 'Run a shell command in the sandbox. Answers its output and its exit code.', {
    command: 'The command, as for bash',
  }),
  define('read_file', 'Read a text file of the sandbox.', { path: 'Absolute, or relative to the home folder' }),
  define('write_file', 'Write a text file in the sandbox; folders that are missing are made.', {
    path: 'Absolute, or relative to the home folder',
    content: 'All of the new content',
  }),
  define('list_files', 'List a folder of the sandbox.', {}, { path: 'The folder; the home folder when it is absent' }),
]

/** `TOOLS` as Anthropic's messages API takes them. */
export function anthropicTools(tools: readonly ToolDefinition[] = TOOLS) {
  return tools.map(({ name, description, parameters }) => ({ name, description, input_schema: parameters }))
}

/** `TOOLS` as OpenAI's chat API takes them, and with it Groq, Together, Fireworks, Mistral, WatsonX and compatible servers. */
export function openaiTools(tools: readonly ToolDefinition[] = TOOLS) {
  return tools.map(({ name, description, parameters }) => ({
    type: 'function' as const,
    function: { name, description, parameters },
  }))
}

/** A model's wish. `arguments` is what it wrote: JSON, if it did well. */
export interface ToolCall {
  readonly id: string
  readonly name: string
  readonly arguments: string | Readonly<Record<string, unknown>>
}

/** A call's arguments, or why they are none. */
export function parseArguments(
  call: ToolCall,
  tools: readonly ToolDefinition[] = TOOLS,
): Record<string, string> | string {
  const tool = tools.find(({ name }) => name === call.name)
  if (!tool) return `there is no tool ${call.name}, only ${tools.map(({ name }) => name).join(', ')}`
  let given: unknown = call.arguments
  if (typeof given === 'string') {
    try {
      given = given.trim() === '' ? {} : JSON.parse(given)
    } catch (error) {
      return `the arguments of ${call.name} are not JSON: ${error instanceof Error ? error.message : error}`
    }
  }
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    return `the arguments of ${call.name} are not an object`
  }
  const parsed: Record<string, string> = {}
  for (const [key, value] of Object.entries(given)) {
    if (!(key in tool.parameters.properties)) return `${call.name} has no argument ${key}`
    // Some models spell out what they leave away.
    if (value === null || value === undefined) continue
    if (typeof value !== 'string') return `the argument ${key} of ${call.name} is not a string`
    parsed[key] = value
  }
  for (const key of tool.parameters.required) {
    if (parsed[key] === undefined) return `${call.name} needs the argument ${key}`
  }
  return parsed
}
