export { cut } from './budget.js'
export {
  type AgentEvent,
  Conversation,
  type ConversationOptions,
  type Ending,
  type Limits,
  type Outcome,
  type Prices,
  type RunOptions,
} from './conversation.js'
export {
  anthropicToolResult,
  type ExecuteOptions,
  execute,
  openaiPictures,
  openaiToolMessage,
  type Picture,
  SandboxLostError,
  type ToolResult,
} from './execute.js'
export { FENCED_INSTRUCTIONS, type FencedCode, fencedCode } from './fenced.js'
export type { Message, Model, ModelEvent, ModelOptions, ModelRequest } from './model.js'
export { type AnthropicClient, anthropicModel } from './models/anthropic.js'
export { type MistralClient, mistralModel } from './models/mistral.js'
export { type ChatClient, openaiModel } from './models/openai.js'
export { type WatsonxClient, type WatsonxOptions, watsonxModel } from './models/watsonx.js'
export { CONVERSATION_KEY, ConversationSandbox, type SandboxOptions } from './sandbox.js'
export {
  anthropicTools,
  openaiTools,
  parseArguments,
  TOOLS,
  type ToolCall,
  type ToolDefinition,
  type ToolName,
} from './tools.js'
