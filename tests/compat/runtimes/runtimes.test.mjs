// The quickstart and the exercise, unmodified, in each runtime: as its own command line has them, in a folder with the package.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import http from 'node:http'
import path from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'

const modules = path.join(import.meta.dirname, 'node_modules')
const DENO = ['run', '--allow-all', '--no-config', '--node-modules-dir=manual', '--no-remote']
const RUNTIMES = [
  { name: 'Node 20', program: 'node20/bin/node', says: 'node' },
  { name: 'Node 22', program: 'node22/bin/node', says: 'node' },
  { name: 'Bun', program: '@oven/bun-linux-x64/bin/bun', says: 'bun' },
  { name: 'Deno', program: '@deno/linux-x64-glibc/deno', arguments: DENO, says: 'deno' },
]

/** Passes requests on to the API and notes which runtime the package says it runs in. */
function listener(api, seen) {
  return http.createServer((request, response) => {
    if (request.headers.sdk_runtime) seen.add(request.headers.sdk_runtime)
    const onward = http.request(api + request.url, { method: request.method, headers: request.headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers)
      answer.pipe(response)
    })
    onward.on('error', (error) => response.destroy(error))
    request.pipe(onward)
  })
}

describe('ci_072_every_runtime', () => {
  const seen = new Set()
  let server
  before(async () => {
    server = listener(process.env.E2B_API_URL, seen)
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  })
  after(() => {
    server.closeAllConnections()
    server.close()
  })

  for (const { name, program, arguments: flags = [], says } of RUNTIMES) {
    for (const script of ['quickstart.mjs', 'runtime.mjs']) {
      test(`${name}: ${script}`, { timeout: 120_000 }, async () => {
        seen.clear()
        const env = { ...process.env, E2B_API_URL: `http://127.0.0.1:${server.address().port}` }
        const options = { cwd: import.meta.dirname, env, timeout: 100_000 }
        const { stdout } = await promisify(execFile)(path.join(modules, program), [...flags, script], options)
        assert.match(stdout, /killed/)
        assert.deepEqual([...seen], [says])
      })
    }
  }
})
