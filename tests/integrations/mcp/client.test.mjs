// `soulbox mcp` against the official TypeScript client, over both transports. The environment is that of test_mcp.py.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { test } from 'node:test'

import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'

const binary = process.env.SOULBOX_BINARY
const template = process.env.INTERPRETER_TEMPLATE ?? 'code-interpreter-slim'
const token = 'token-of-these-tests'
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => /^(PATH|HOME|LANG|E2B_)/.test(name)))

async function sandboxes() {
  const answer = await fetch(`${process.env.E2B_API_URL}/sandboxes`, { headers: { 'X-API-Key': process.env.E2B_API_KEY } })
  return (await answer.json()).filter((sandbox) => 'soulboxMcp' in (sandbox.metadata ?? {}))
}

async function use(transport) {
  const client = new Client({ name: 'tests', version: '1.0.0' })
  await client.connect(transport)
  const { tools } = await client.listTools()
  assert.deepEqual(tools.map((tool) => tool.name), ['run_code', 'run_command', 'read_file', 'write_file', 'list_files'])
  const ran = await client.callTool({ name: 'run_code', arguments: { code: 'x = 6\nx * 7' } })
  assert.deepEqual([ran.isError ?? false, ran.content], [false, [{ type: 'text', text: '42\n' }]])
  const failed = await client.callTool({ name: 'run_command', arguments: { command: 'exit 5' } })
  assert.deepEqual([failed.isError, failed.content[0].text.trim()], [true, '[exit status 5]'])
  await client.callTool({ name: 'write_file', arguments: { path: 'a.txt', content: 'text' } })
  const { contents } = await client.readResource({ uri: 'file:///home/user/a.txt' })
  assert.equal(contents[0].text, 'text')
  const { resources } = await client.listResources()
  assert.ok(resources.some((resource) => resource.uri === 'file:///home/user/a.txt'))
  assert.equal((await sandboxes()).length, 1)
  await client.close()
}

test('standard input and output', async () => {
  await use(new StdioClientTransport({ command: binary, args: ['mcp', '--template', template], env: environment }))
  // The client closes the input and does not wait for the end of the program.
  for (let attempt = 0; attempt < 100 && (await sandboxes()).length > 0; attempt++) await new Promise((done) => setTimeout(done, 100))
  assert.deepEqual(await sandboxes(), [])
})

test('HTTP with a token', async () => {
  const server = spawn(binary, ['mcp', '--http', '127.0.0.1:0', '--template', template], {
    env: { ...environment, SOULBOX_MCP_TOKEN: token },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  try {
    const [line] = await once(createInterface(server.stderr), 'line')
    const url = new URL(line.split(' ').at(-1))
    const headers = { Authorization: `Bearer ${token}` }
    await use(new StreamableHTTPClientTransport(url, { requestInit: { headers } }))
    const stranger = new Client({ name: 'stranger', version: '1.0.0' })
    await assert.rejects(stranger.connect(new StreamableHTTPClientTransport(url)), /token is required/)
  } finally {
    server.kill('SIGTERM')
    await once(server, 'exit')
  }
  assert.deepEqual(await sandboxes(), [])
})
