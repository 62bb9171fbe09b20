// The six official clients, each against its own wire: one shot by hand, the loop, a streamed call, an error.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox } from '@e2b/code-interpreter'
import {
  anthropicToolResult,
  anthropicTools,
  Conversation,
  execute,
  fencedCode,
  openaiToolMessage,
  openaiTools,
} from '@soulbox/agents'
import { ask, closed, marked, PROVIDERS, projectId, sandboxesOf, template, useProvider } from './support.mjs'

const provider = useProvider()
let sandbox
before(async () => {
  sandbox = await (template ? Sandbox.create(template) : Sandbox.create())
})
after(() => sandbox.kill())

const fortyTwo = ask("print('the answer is', 6 * 7)")

/** Whoever writes his own loop: official types in, official types out. */
async function oneShotOfChat(create) {
  const messages = [{ role: 'user', content: fortyTwo }]
  const { message } = (await create(messages)).choices[0]
  const call = message.tool_calls[0]
  const result = await execute(sandbox, { id: call.id, name: call.function.name, arguments: call.function.arguments })
  messages.push(message, openaiToolMessage(result))
  return { result, text: (await create(messages)).choices[0].message.content }
}

const ONE_SHOTS = {
  async anthropic(client) {
    const messages = [{ role: 'user', content: fortyTwo }]
    const create = () => client.messages.create({ model: 'fake-tool', max_tokens: 100, tools: anthropicTools(), messages })
    const answer = await create()
    const call = answer.content.find(({ type }) => type === 'tool_use')
    const result = await execute(sandbox, { id: call.id, name: call.name, arguments: call.input })
    messages.push({ role: 'assistant', content: answer.content }, { role: 'user', content: [anthropicToolResult(result)] })
    return { result, text: (await create()).content.map(({ text }) => text).join('') }
  },
  // Codestral calls no tools.
  async mistral(client) {
    const messages = [{ role: 'user', content: fortyTwo }]
    const answer = await client.chat.complete({ model: 'codestral-fake-fenced', messages })
    const { content } = answer.choices[0].message
    const [code] = fencedCode(content)
    const result = await execute(sandbox, { id: 'block', name: 'run_code', arguments: { ...code } })
    messages.push({ role: 'assistant', content }, { role: 'user', content: `Output:\n${result.text}` })
    const last = await client.chat.complete({ model: 'codestral-fake-fenced', messages })
    return { result, text: last.choices[0].message.content }
  },
  groq: (client) =>
    oneShotOfChat((messages) => client.chat.completions.create({ model: 'fake-tool', messages, tools: openaiTools() })),
  together: (client) =>
    oneShotOfChat((messages) => client.chat.completions.create({ model: 'fake-tool', messages, tools: openaiTools() })),
  fireworks: (client) =>
    oneShotOfChat((messages) => client.chat.completions.create({ model: 'fake-tool', messages, tools: openaiTools() })),
  watsonx: (client) =>
    oneShotOfChat(async (messages) => {
      const asked = await client.textChat({ modelId: 'fake-tool', projectId, messages, tools: openaiTools() })
      return asked.result
    }),
}

for (const [name, { client, model, path }] of Object.entries(PROVIDERS)) {
  const conversation = (scenario, options = {}) =>
    new Conversation({
      model: model(client(provider.url), `fake-${scenario}`),
      sandbox: marked(`${name} ${scenario}`),
      retries: 0,
      ...options,
    })
  // Besides the chat there may be a token that was asked for.
  const chats = async () => (await provider.requests()).filter((request) => request.path === path)

  test(`ci_082_six_official_clients: ${name}: one shot`, async () => {
    await provider.forget()
    const { result, text } = await ONE_SHOTS[name](client(provider.url))
    assert.equal(result.text, 'the answer is 42')
    assert.match(text, /the answer is 42/)
    assert.deepEqual((await provider.requests()).filter(({ violation }) => violation), [])
  })

  test(`ci_082_six_official_clients: ${name}: a loop whose code makes a chart`, async (t) => {
    await provider.forget()
    const talk = closed(t, conversation('chart'))
    const outcome = await talk.run('Draw something.')
    assert.equal(outcome.ending, 'finished', outcome.cause)
    assert.deepEqual([outcome.turns, outcome.calls], [2, 1])
    assert.equal(outcome.pictures[0].mediaType, 'image/png')
    assert.equal(Buffer.from(outcome.pictures[0].data, 'base64').subarray(1, 4).toString(), 'PNG')
    assert.ok(outcome.usage.input > 0 && outcome.usage.output > 0)
    const asked = await chats()
    assert.equal(asked.length, 2)
    for (const { auth, model, status, violation, body } of asked) {
      assert.deepEqual({ auth: auth !== null, model, status, violation }, { auth: true, model: 'fake-chart', status: 200, violation: null })
      const names = body.tools.map((tool) => tool.name ?? tool.function.name)
      assert.deepEqual(names, ['run_code', 'run_command', 'read_file', 'write_file', 'list_files'])
    }
    // Who sees pictures is told of them; the others are told that there is one.
    const told = JSON.stringify(asked[1].body ?? '')
    assert.equal(told.includes(outcome.pictures[0].data), name === 'anthropic')
  })

  test(`ci_082_six_official_clients: ${name}: a call that comes in pieces`, async (t) => {
    const talk = closed(t, conversation('tool-text'))
    const seen = []
    for await (const event of talk.stream(fortyTwo)) seen.push(event)
    const kinds = seen.map(({ type }) => type).filter((type, index, all) => type !== all[index - 1])
    assert.deepEqual(kinds, ['text', 'call_started', 'output', 'call_finished', 'text', 'ended'])
    const { call } = seen.find(({ type }) => type === 'call_started')
    const given = typeof call.arguments === 'string' ? JSON.parse(call.arguments) : call.arguments
    assert.match(given.code, /6 \* 7/)
    assert.equal(seen.find(({ type }) => type === 'output').text, 'the answer is 42\n')
    assert.ok(seen.filter(({ type }) => type === 'text').length > 2, 'text comes as it is written')
    assert.match(seen.at(-1).outcome.text, /the answer is 42/)
  })

  test(`ci_082_six_official_clients: ${name}: an error of the provider`, async () => {
    await provider.forget()
    const outcome = await conversation('error-400', { retries: 4 }).run(fortyTwo)
    assert.equal(outcome.ending, 'provider_failed')
    assert.match(outcome.cause, /scenario `error-400` answers 400/)
    assert.equal((await chats()).length, 1)
    assert.deepEqual(await sandboxesOf(`${name} error-400`), [])
  })
}

for (const name of ['anthropic', 'fireworks']) {
  const { client, model, path } = PROVIDERS[name]

  test(`ci_083_a_streamed_call_is_put_together: ${name}`, async (t) => {
    await provider.forget()
    const talk = closed(t, new Conversation({
      model: model(client(provider.url), 'fake-stream-tool'),
      sandbox: marked(`stream ${name}`),
    }))
    const lines = Array.from({ length: 50 }, (_, line) => `print(${line}, '"\\\\', "é")`).join('\n')
    const outcome = await talk.run(ask(lines))
    assert.equal(outcome.ending, 'finished', outcome.cause)
    const { execution } = talk.messages.find(({ role }) => role === 'tool').results[0]
    assert.equal(execution.logs.stdout.join('').split('\n')[49], '49 "\\ é')
    assert.ok((await provider.requests()).every(({ body }) => body.stream === true))
  })

  test(`ci_084_busy_is_asked_again_and_a_wrong_key_is_not: ${name}`, async (t) => {
    await provider.forget()
    const retried = []
    const talk = closed(t, new Conversation({
      model: model(client(provider.url), 'fake-retry-429'),
      sandbox: marked(`busy ${name}`),
    }))
    const onEvent = (event) => event.type === 'retrying' && retried.push(event.seconds)
    const outcome = await talk.run(fortyTwo, { onEvent })
    assert.equal(outcome.ending, 'finished', outcome.cause)
    // The provider says `Retry-After: 1`.
    assert.ok(retried.length >= 2 && retried.every((seconds) => seconds === 1), `${retried}`)
    const statuses = (await provider.requests()).map(({ status }) => status)
    assert.deepEqual(statuses.slice(0, 3), [429, 429, 200])

    await provider.forget()
    const refused = await new Conversation({ model: model(client(provider.url, 'wrong-key'), 'fake-tool') }).run(fortyTwo)
    assert.equal(refused.ending, 'provider_failed')
    assert.match(refused.cause, /401/)
    assert.equal((await provider.requests()).filter((request) => request.path === path).length, 1)
  })
}

test('ci_084_a_server_that_is_overloaded_is_asked_again', async (t) => {
  const { client, model } = PROVIDERS.anthropic
  const talk = closed(t, new Conversation({
    model: model(client(provider.url), 'fake-retry-529'),
    sandbox: marked('overloaded'),
  }))
  assert.equal((await talk.run(fortyTwo)).ending, 'finished')
})
