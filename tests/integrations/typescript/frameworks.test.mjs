// Vercel's AI SDK and AgentKit: the tools, and the examples as they stand.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { createAgent, createNetwork, openai } from '@inngest/agent-kit'
import { ConversationSandbox } from '@soulbox/agents'
import { soulboxTools as agentKitTools } from '@soulbox/agents/agent-kit'
import { soulboxTools } from '@soulbox/agents/ai-sdk'
import { generateText, isStepCount, streamText } from 'ai'
import { ask, marked, sandboxesOf, useProvider } from './support.mjs'

const provider = useProvider()
const model = (scenario) =>
  createOpenAICompatible({ name: 'loopback', baseURL: `${provider.url}/compatible/v1`, apiKey: 'key' })(`fake-${scenario}`)

function sandboxFor(t, name) {
  const sandbox = new ConversationSandbox(undefined, marked(name))
  t.after(async () => {
    await sandbox.release()
    assert.deepEqual(await sandboxesOf(name), [])
  })
  return sandbox
}

/** A program of examples/, as its reader runs it. */
function example(name) {
  const env = {
    ...process.env,
    MODEL: 'fake-tool',
    MODEL_API_KEY: 'key',
    MODEL_BASE_URL: `${provider.url}/compatible/v1`,
  }
  return promisify(execFile)(process.execPath, [`../examples/${name}`], { env, timeout: 120_000 })
}

test('ci_086_vercel_ai_sdk_tool_loop', async (t) => {
  await provider.forget()
  const tools = soulboxTools(sandboxFor(t, 'ai'))
  const { text, steps } = await generateText({
    model: model('tool'),
    tools,
    stopWhen: isStepCount(5),
    prompt: ask('kept = 6 * 7\nprint(kept)'),
  })
  assert.match(text, /42/)
  assert.equal(steps[0].toolResults[0].output.text, '42')
  const asked = await provider.requests()
  assert.deepEqual(asked.map(({ violation }) => violation), [null, null])
  assert.deepEqual(asked[0].body.tools.map(({ function: { name } }) => name), Object.keys(tools))

  // The second request of a chat finds what the first left.
  const result = streamText({ model: model('stream-tool'), tools, stopWhen: isStepCount(5), prompt: ask('print(kept + 1)') })
  const parts = []
  for await (const part of result.stream) parts.push(part)
  assert.equal(parts.find(({ type }) => type === 'tool-result').output.text, '43')
  assert.ok(parts.filter(({ type }) => type === 'text-delta').length > 1)
})

test('ci_086_vercel_ai_sdk_charts_and_errors', async (t) => {
  const tools = soulboxTools(sandboxFor(t, 'ai charts'))
  const drawn = await generateText({ model: model('chart'), tools, stopWhen: isStepCount(5), prompt: 'Draw.' })
  const [picture] = drawn.steps[0].toolResults[0].output.pictures
  assert.equal(picture.mediaType, 'image/png')
  assert.ok(picture.chart.type)
  const failed = await generateText({ model: model('raise'), tools, stopWhen: isStepCount(5), prompt: 'Fail.' })
  assert.match(failed.steps[0].toolResults[0].output.text, /ValueError: on purpose/)
  assert.ok(failed.steps[0].toolResults[0].output.failed)
})

test('ci_086_vercel_ai_sdk_cancelled', async (t) => {
  const user = new AbortController()
  const tools = soulboxTools(sandboxFor(t, 'ai cancelled'))
  setTimeout(() => user.abort(), 4000)
  const options = { model: model('endless-code'), tools, stopWhen: isStepCount(5), prompt: 'Loop.', maxRetries: 0 }
  const start = performance.now()
  await assert.rejects(generateText({ ...options, abortSignal: user.signal }), { name: 'AbortError' })
  assert.ok(performance.now() - start < 30_000)
})

test('ci_086_vercel_ai_sdk_example', async () => {
  const { stdout } = await example('vercel-ai-sdk.mjs')
  assert.match(stdout, /^2 steps: [^>]*5050/)
  assert.match(stdout, /^> run_code \{"code":/m)
})

test('ci_087_agentkit_network_run', async (t) => {
  await provider.forget()
  const coder = createAgent({ name: 'coder', system: 'Run code.', tools: agentKitTools(sandboxFor(t, 'kit')) })
  const network = createNetwork({
    name: 'network',
    agents: [coder],
    defaultModel: openai({ model: 'fake-tool', apiKey: 'key', baseUrl: `${provider.url}/compatible/v1` }),
    router: ({ callCount }) => (callCount < 2 ? coder : undefined),
  })
  const { state } = await network.run(ask('print(6 * 7)'))
  const [first, second] = state.results
  assert.deepEqual(first.toolCalls[0].content, { data: '42' })
  assert.match(second.output[0].content, /42/)
  assert.deepEqual((await provider.requests()).map(({ violation }) => violation), [null, null])
})

test('ci_087_agentkit_example', async () => {
  const { stdout } = await example('agentkit.mjs')
  assert.match(stdout, /^coder ran run_code: .*5050/m)
  assert.match(stdout, /^reporter: /m)
})
