// Inngest's AgentKit: a network of agents in this process, of which one writes and runs code and one reports.
// `npm install @inngest/agent-kit inngest @soulbox/agents`; E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL name the server.
import { createAgent, createNetwork, openai } from '@inngest/agent-kit'
import { ConversationSandbox } from '@soulbox/agents'
import { soulboxTools } from '@soulbox/agents/agent-kit'

const model = openai({
  model: process.env.MODEL,
  apiKey: process.env.MODEL_API_KEY,
  baseUrl: process.env.MODEL_BASE_URL,
})

const sandbox = new ConversationSandbox()

const coder = createAgent({
  name: 'coder',
  description: 'Writes code and runs it',
  system: 'Solve the task with code. Run what you write.',
  tools: soulboxTools(sandbox),
})

const reporter = createAgent({
  name: 'reporter',
  description: 'Says what came out',
  system: 'Say in one sentence what the code found out.',
})

const network = createNetwork({
  name: 'analysts',
  agents: [coder, reporter],
  defaultModel: model,
  maxIter: 6,
  // The coder until it has run something, then the reporter, then nobody.
  router: ({ network, lastResult }) => {
    if (lastResult?.agentName === 'reporter') return undefined
    return network.state.results.some(({ toolCalls }) => toolCalls.length > 0) ? reporter : coder
  },
})

try {
  const { state } = await network.run(process.argv[2] ?? 'Add the numbers up to 100 with Python.')
  for (const { agentName, output, toolCalls } of state.results) {
    for (const message of output) if (message.type === 'text') console.log(`${agentName}: ${message.content}`)
    for (const { tool, content } of toolCalls) console.log(`${agentName} ran ${tool.name}: ${JSON.stringify(content)}`)
  }
} finally {
  await sandbox.release()
}
