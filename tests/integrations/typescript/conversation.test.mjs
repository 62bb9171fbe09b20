// How a run ends, whatever model, provider, sandbox and user do; and that it leaves no sandbox behind.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Sandbox } from '@e2b/code-interpreter'
import { Conversation, openaiModel } from '@soulbox/agents'
import OpenAI from 'openai'
import { ask, closed, marked, sandboxesOf, useProvider } from './support.mjs'

const provider = useProvider()

const model = (scenario, options) =>
  openaiModel(new OpenAI({ apiKey: 'key', baseURL: `${provider.url}/compatible/v1` }), `fake-${scenario}`, options)

const talkOf = (scenario, { callsTools = true, ...options } = {}) =>
  new Conversation({ model: model(scenario, { callsTools }), sandbox: marked(scenario), limits: { seconds: 60 }, ...options })

/** Runs a scenario that cannot finish, and looks for what is left of it. */
async function ends(scenario, ending, cause, options = {}, runOptions = {}) {
  const { prompt = 'Do it.', ...rest } = options
  const outcome = await talkOf(scenario, rest).run(prompt, runOptions)
  assert.equal(outcome.ending, ending, outcome.cause)
  assert.match(outcome.cause, cause)
  assert.deepEqual(await sandboxesOf(scenario), [])
  return outcome
}

/** Runs a scenario that gets over what goes wrong in it; gives the results of its calls. */
async function getsOver(t, scenario, options = {}) {
  const { prompt = ask("print('fine')"), ...rest } = options
  const talk = closed(t, talkOf(scenario, rest))
  const outcome = await talk.run(prompt)
  assert.equal(outcome.ending, 'finished', outcome.cause)
  const results = talk.messages.filter(({ role }) => role === 'tool').flatMap((message) => message.results)
  return { outcome, results, talk }
}

test('a limit of turns', () => ends('endless', 'turn_limit', /3 answers/, { limits: { turns: 3 } }))

test('a model that never learns', () => ends('malformed-always', 'turn_limit', /4 answers/, { limits: { turns: 4 } }))

test('a limit of cost', async () => {
  const prices = { input: 1, output: 1_000_000 }
  const outcome = await ends('endless', 'cost_limit', /of 5 are spent/, { limits: { cost: 5 }, prices })
  assert.ok(outcome.cost >= 5)
  assert.throws(() => talkOf('endless', { limits: { cost: 5 } }), /needs prices/)
})

test('a limit of time, while code runs', async () => {
  const start = performance.now()
  await ends('endless-code', 'time_limit', /6 s/, { limits: { seconds: 6 } })
  assert.ok(performance.now() - start < 30_000)
})

test('a limit of time, while the provider says nothing', () => ends('stall', 'time_limit', /1 s/, { limits: { seconds: 1 } }))

test('a user who cancels, while the provider speaks', async () => {
  const user = new AbortController()
  setTimeout(() => user.abort(new Error('enough')), 500)
  await ends('stall', 'cancelled', /enough/, {}, { signal: user.signal })
})

test('a user who cancels, while code runs', async () => {
  const user = new AbortController()
  const onEvent = ({ type }) => type === 'output' && user.abort(new Error('enough'))
  const prompt = ask("import time\nprint('begun', flush=True)\ntime.sleep(600)")
  const start = performance.now()
  await ends('tool', 'cancelled', /enough/, { prompt }, { signal: user.signal, onEvent })
  assert.ok(performance.now() - start < 30_000)
})

test('a user who leaves the stream', async () => {
  for await (const event of talkOf('endless').stream('Do it.')) {
    if (event.type === 'call_finished') break
  }
  assert.deepEqual(await sandboxesOf('endless'), [])
})

test('a stream that is cut', () => ends('cut', 'provider_failed', /./, { retries: 0 }))

test('a stream that is cut amid a call', () => ends('cut-tool', 'provider_failed', /asked 2 times/, { retries: 1 }))

test('a provider that is broken', () => ends('error-500', 'provider_failed', /500.*asked 3 times/, { retries: 2 }))

test('a provider that is away', async () => {
  const client = new OpenAI({ apiKey: 'key', baseURL: 'http://127.0.0.1:9/v1' })
  const outcome = await new Conversation({ model: openaiModel(client, 'fake-tool'), retries: 1 }).run('Do it.')
  assert.equal(outcome.ending, 'provider_failed')
  assert.match(outcome.cause, /asked 2 times/)
})

test('a sandbox that is killed amid a call', async () => {
  const onEvent = async ({ type }) => {
    if (type !== 'output') return
    for (const { sandboxId } of await sandboxesOf('tool')) await Sandbox.kill(sandboxId)
  }
  const prompt = ask("import time\nprint('begun', flush=True)\ntime.sleep(600)")
  await ends('tool', 'sandbox_lost', /gone/, { prompt }, { onEvent })
})

test('a template that is not there', () =>
  ends('tool', 'sandbox_lost', /no sandbox: .*no-such-template/, { sandbox: { template: 'no-such-template' }, prompt: ask('1') }))

test('arguments that are no JSON', async (t) => {
  const { results } = await getsOver(t, 'malformed')
  assert.match(results[0].text, /not JSON/)
  assert.deepEqual([results[0].failed, results.at(-1).text], [true, 'fine'])
})

test('arguments that do not fit', async (t) => {
  const { results } = await getsOver(t, 'wrong-arguments')
  assert.match(results[0].text, /run_code/)
  assert.ok(results[0].failed)
})

test('a tool that is not there', async (t) => {
  const { results } = await getsOver(t, 'unknown-tool')
  assert.match(results[0].text, /there is no tool no_such_tool, only run_code,/)
})

test('an exception is one line', async (t) => {
  const { results } = await getsOver(t, 'raise', { prompt: 'Fail.' })
  assert.match(results[0].text, /ValueError: on purpose$/)
  assert.ok(results[0].failed)
})

test('code without end', async (t) => {
  const { results } = await getsOver(t, 'endless-code', { prompt: 'Loop.', execute: { seconds: 3 } })
  assert.equal(results[0].text, 'stopped: it had not ended after 3 s')
})

test('10 MB of output', async (t) => {
  const { results } = await getsOver(t, 'loud', { prompt: 'Shout.' })
  assert.ok(results[0].text.length < 20_000)
  assert.match(results[0].text, /are cut here\]/)
  assert.ok(results[0].execution.logs.stdout.join('').length >= 10_000_000)
})

test('10 MB of the model itself', async () => {
  const outcome = await talkOf('big').run('Talk.')
  assert.equal(outcome.text.length, 10_000_000)
})

test('twenty charts', async (t) => {
  const { results, outcome } = await getsOver(t, 'charts', { prompt: 'Draw.' })
  assert.equal(outcome.pictures.length, 4)
  assert.match(results[0].text, /\[16 of 20 pictures are left out here\]/)
})

test('calls at once', async (t) => {
  const prompt = [1, 2, 3].map((number) => ask(`print(${number})`)).join('\n')
  const { results, outcome } = await getsOver(t, 'parallel', { prompt })
  assert.deepEqual(results.map(({ text }) => text), ['1', '2', '3'])
  assert.deepEqual([outcome.turns, outcome.calls], [2, 3])
})

test('calls at once: commands wait for each other, code takes turns', async (t) => {
  const command = (mine, other) => ({ name: 'run_command', arguments: { command: `touch ${mine}; until [ -e ${other} ]; do sleep 0.05; done` } })
  const code = (text) => ({ name: 'run_code', arguments: { code: text } })
  await provider.scenario('together', {
    turns: [
      { calls: [command('a', 'b'), command('b', 'a'), code('import time; time.sleep(1); x = 1'), code('x = x * 10 + 2'), code('x')] },
      { calls: [{ name: 'write_file', arguments: { path: 'empty', content: '' } }] },
      { calls: [{ name: 'read_file', arguments: { path: 'empty' } }] },
      { text: 'Done.' },
    ],
  })
  const { results } = await getsOver(t, 'together')
  assert.deepEqual(results.map(({ text, failed }) => [text, failed]).slice(0, 5), [
    ['no output', false], ['no output', false], ['no output', false], ['no output', false], ['12', false],
  ])
  assert.deepEqual([results[6].text, results[6].failed], ['the file is empty', false])
})

test('code in fenced blocks', async (t) => {
  const talk = closed(t, talkOf('fenced', { callsTools: false }))
  const outcome = await talk.run(ask('print(6 * 7)'))
  assert.deepEqual([outcome.ending, outcome.turns, outcome.calls], ['finished', 2, 1])
  assert.match(outcome.text, /42/)
})

test('no code in the answer', async () => {
  const outcome = await talkOf('no-code', { callsTools: false }).run('Say something.')
  assert.deepEqual([outcome.ending, outcome.calls, outcome.cause], ['finished', 0, 'the answer has no code to run'])
  assert.deepEqual(await sandboxesOf('no-code'), [])
})

test('all five tools', async (t) => {
  await provider.scenario('five', {
    turns: [
      { calls: [{ name: 'write_file', arguments: { path: 'notes/a.txt', content: 'seven' } }] },
      {
        calls: [
          { name: 'read_file', arguments: { path: 'notes/a.txt' } },
          { name: 'list_files', arguments: { path: 'notes' } },
          { name: 'list_files', arguments: {} },
          { name: 'run_command', arguments: { command: 'cat notes/a.txt; echo; echo no >&2; exit 3' } },
          { name: 'read_file', arguments: { path: 'absent' } },
          { name: 'run_code', arguments: { code: "open('/home/user/notes/a.txt').read()" } },
        ],
      },
      { text: 'Done.' },
    ],
  })
  const { results } = await getsOver(t, 'five')
  const texts = results.map(({ text, failed }) => [text, failed])
  assert.deepEqual(texts.slice(0, 3), [
    ['wrote /home/user/notes/a.txt', false],
    ['seven', false],
    ['a.txt  5 bytes', false],
  ])
  assert.match(texts[3][0], /^notes\/$/m)
  assert.deepEqual(texts[4], ['seven\nno\nexit code 3', true])
  assert.match(texts[5][0], /absent/)
  assert.deepEqual([texts[5][1], texts[6]], [true, ['seven', false]])
})

test('a call that is not approved', async (t) => {
  const asked = []
  const approve = (call) => {
    asked.push(call.name)
    return 'it is Sunday'
  }
  const { results } = await getsOver(t, 'tool', { approve })
  assert.deepEqual(asked, ['run_code'])
  assert.equal(results[0].text, 'not approved: it is Sunday')
  assert.deepEqual(await sandboxesOf('tool'), [], 'a sandbox is made for a call that runs')
})

test('a second run knows the first', async (t) => {
  const talk = closed(t, talkOf('tool'))
  await talk.run(ask('kept = 5'))
  const outcome = await talk.run(ask('print(kept + 1)'))
  assert.match(outcome.text, /6/)
  assert.equal((await sandboxesOf('tool')).length, 1)
  const going = talk.run('Once more.')
  await assert.rejects(talk.run('And at once.'), /has a run already/)
  await going
})

test('a conversation outlives its process, and is paused meanwhile', async () => {
  const id = `chat-${process.pid}-${Date.now()}`
  const open = () => talkOf('tool', { id })
  const first = open()
  await first.run(ask('kept = 5'))
  const [sandbox] = await sandboxesOf('tool')
  await first.close()
  const [paused] = await sandboxesOf('tool')
  assert.deepEqual([paused.sandboxId, paused.state], [sandbox.sandboxId, 'paused'])

  const second = open()
  assert.match((await second.run(ask('print(kept + 1)'))).text, /6/)
  const [resumed, ...others] = await sandboxesOf('tool')
  assert.deepEqual([resumed.sandboxId, resumed.state, others], [sandbox.sandboxId, 'running', []])
  await second.sandbox.kill()
  assert.deepEqual(await sandboxesOf('tool'), [])
})

test('two processes of one conversation share a sandbox', async () => {
  const id = `shared-${process.pid}-${Date.now()}`
  const talks = [talkOf('tool', { id }), talkOf('tool', { id }), talkOf('tool', { id })]
  const outcomes = await Promise.all(talks.map((talk, number) => talk.run(ask(`print('here is', ${number})`))))
  assert.deepEqual(outcomes.map(({ ending }) => ending), ['finished', 'finished', 'finished'])
  assert.equal((await sandboxesOf('tool')).length, 1)
  await talks[0].sandbox.kill()
  assert.deepEqual(await sandboxesOf('tool'), [])
  await Promise.all(talks.map((talk) => talk.close()))
})

test('the key of a provider is told to nobody else', async (t) => {
  const canary = 'canary-5f1d7c2a9b'
  const client = new OpenAI({ apiKey: canary, baseURL: `${provider.url}/compatible/v1` })
  await provider.forget()
  const search = `import subprocess\nprint(subprocess.run("env; grep -rs ${canary.slice(0, 6)} /home /tmp /root /etc", shell=True, capture_output=True, text=True).stdout)`
  const talk = closed(t, new Conversation({ model: openaiModel(client, 'fake-tool'), sandbox: marked('canary') }))
  const outcome = await talk.run(ask(search))
  assert.equal(outcome.ending, 'finished', outcome.cause)
  const everything = JSON.stringify([outcome, talk.messages, await provider.requests()])
  assert.ok(everything.includes('HOME='), 'the environment of the sandbox is in what is searched')
  assert.ok(!everything.includes(canary))
})
