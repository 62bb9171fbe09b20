// A tour of a sandbox with the official JavaScript package: npm install e2b, then eval "$(soulbox env)".
import assert from 'node:assert/strict'
import http from 'node:http'
import https from 'node:https'
import { setTimeout as sleep } from 'node:timers/promises'
import { Sandbox } from 'e2b'

const started = performance.now()
let last = started
function step(what) {
  const now = performance.now()
  console.log(`${(now - last).toFixed(1).padStart(8)} ms  ${what}`)
  last = now
}

// Asks a server in the sandbox: by its own host name, or through the one URL that serves all sandboxes.
function get(sandbox, port) {
  const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': String(port) }
  const url = process.env.E2B_SANDBOX_URL || `https://${sandbox.getHost(port)}`
  return new Promise((resolve, reject) => {
    const request = (url.startsWith('https:') ? https : http).get(url, { headers, agent: false }, async (answer) => {
      resolve({ status: answer.statusCode, text: (await answer.toArray()).join('') })
    })
    request.on('error', reject)
  })
}
async function fetchPage(sandbox, port) {
  for (let attempt = 0; attempt < 50; attempt++) {
    const answer = await get(sandbox, port)
    if (answer.status !== 502) return answer // 502 until the server in there listens
    await sleep(50)
  }
  throw new Error(`nothing answered on port ${port}`)
}

const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
try {
  step(`created ${sandbox.sandboxId}`)
  const result = await sandbox.commands.run(`python3 -c 'print(sum(range(1_000_001)))'`)
  assert.equal(result.stdout, '500000500000\n')
  step(`ran a Python program: ${result.stdout.trim()}`)
  const pieces = []
  await sandbox.commands.run('for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done', { onStdout: (p) => pieces.push(p) })
  assert.equal(pieces.join(''), 'line 1\nline 2\nline 3\nline 4\nline 5\n')
  step(`streamed a long command in ${pieces.length} pieces`)
  await sandbox.files.write('/home/user/hello.txt', 'hello, sandbox\n')
  assert.equal(await sandbox.files.read('/home/user/hello.txt'), 'hello, sandbox\n')
  step('wrote a file and read it back')
  step(`listed /home/user: ${(await sandbox.files.list('/home/user')).map((entry) => entry.name).sort().join(', ')}`)
  const server = await sandbox.commands.run('python3 -m http.server 8000 --bind 127.0.0.1', { background: true })
  assert.match((await fetchPage(sandbox, 8000)).text, /hello\.txt/)
  step('served HTTP inside and fetched it from outside')
  assert.ok(await server.kill())
} finally {
  await sandbox.kill()
}
step('killed')
console.log(`${(performance.now() - started).toFixed(1).padStart(8)} ms  in all`)
