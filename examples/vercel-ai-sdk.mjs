// Vercel's AI SDK: a model of any provider works in a sandbox. `npm install ai @ai-sdk/openai-compatible @soulbox/agents`
// E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL name the server (`soulbox env` prints them).
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { ConversationSandbox } from '@soulbox/agents'
import { soulboxTools } from '@soulbox/agents/ai-sdk'
import { generateText, isStepCount, streamText } from 'ai'

const provider = createOpenAICompatible({
  name: 'provider',
  baseURL: process.env.MODEL_BASE_URL,
  apiKey: process.env.MODEL_API_KEY,
})
const model = provider(process.env.MODEL)

// Made at the first call. With an id it is kept and found again: one for each chat.
const sandbox = new ConversationSandbox()
const tools = soulboxTools(sandbox)

try {
  const { text, steps } = await generateText({
    model,
    tools,
    stopWhen: isStepCount(10),
    prompt: process.argv[2] ?? 'Add the numbers up to 100 with Python.',
  })
  console.log(`${steps.length} steps: ${text}`)

  // The same, told as it comes.
  const result = streamText({ model, tools, stopWhen: isStepCount(10), prompt: 'Plot sin(x), and say where it is zero.' })
  for await (const part of result.stream) {
    if (part.type === 'text-delta') process.stdout.write(part.text)
    if (part.type === 'tool-call') console.log(`\n> ${part.toolName} ${JSON.stringify(part.input)}`)
    if (part.type === 'tool-result') console.log(part.output.text, `(${part.output.pictures.length} pictures)`)
    if (part.type === 'error') throw part.error
  }
  console.log()
} finally {
  await sandbox.release()
}
