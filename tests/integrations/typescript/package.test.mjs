// The package in a folder that has nothing else: it brings what it needs, and no provider's client.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'

const execute = promisify(execFile)
const packages = path.resolve(import.meta.dirname, '..')

// As a strict reader of the types writes it: a model of his own, which needs no provider.
const CONSUMER = `
import { Conversation, type Model, type Outcome, openaiTools } from '@soulbox/agents'

const model: Model = {
  callsTools: true,
  async *stream({ messages, tools }) {
    yield { type: 'text', text: \`\${messages.length} message, \${tools.length} tools\` }
    yield { type: 'usage', input: 1_000_000, output: 0 }
    yield { type: 'end' }
  },
}
const conversation = new Conversation({ model, prices: { input: 2, output: 8 }, limits: { cost: 1 } })
const outcome: Outcome = await conversation.run('Hello')
console.log(outcome.ending, outcome.text, outcome.cost, openaiTools().length)
`

test('a clean folder', async (t) => {
  const folder = await mkdtemp(path.join(tmpdir(), 'soulbox-agents-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const [archive] = (await readdir(packages)).filter((name) => /^soulbox-agents-.*\.tgz$/.test(name))
  await writeFile(path.join(folder, 'package.json'), '{ "private": true, "type": "module" }')
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', '--omit=peer']
  await execute('npm', ['install', ...flags, path.join(packages, archive)], { cwd: folder })
  const installed = await readdir(path.join(folder, 'node_modules'))
  assert.ok(installed.includes('e2b') && installed.includes('@soulbox'))
  for (const client of ['@anthropic-ai', '@mistralai', 'groq-sdk', 'openai', 'together-ai', 'ai', 'zod', 'next']) {
    assert.ok(!installed.includes(client), client)
  }
  assert.deepEqual((await readdir(path.join(folder, 'node_modules/@soulbox/agents'))).sort(), ['README.md', 'dist', 'package.json'])

  await writeFile(path.join(folder, 'consumer.ts'), CONSUMER)
  const compiler = path.join(packages, 'node_modules/typescript/bin/tsc')
  const strict = ['--strict', '--exactOptionalPropertyTypes', '--module', 'nodenext', '--target', 'es2022', '--skipLibCheck']
  const types = ['--typeRoots', path.join(packages, 'node_modules/@types'), '--types', 'node']
  await execute(process.execPath, [compiler, ...strict, ...types, 'consumer.ts'], { cwd: folder }).catch(({ stdout }) => assert.fail(stdout))
  const { stdout } = await execute(process.execPath, ['consumer.js'], { cwd: folder })
  assert.equal(stdout, 'finished 1 message, 5 tools 2 5\n')
})
