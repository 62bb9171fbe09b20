// The official JavaScript package against the server of E2B_API_URL and E2B_SANDBOX_URL. Run from a folder that
// has the package (tests/compat/run.sh copies this file there): node --test sandbox.test.mjs
import assert from 'node:assert/strict'
import http from 'node:http'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  AuthenticationError,
  CommandExitError,
  FileNotFoundError,
  InvalidArgumentError,
  NotFoundError,
  Sandbox,
  SandboxError,
  TimeoutError,
} from 'e2b'

const TEMPLATE = process.env.SOULBOX_TEST_TEMPLATE || 'base'
const UNKNOWN = 'iaaaaaaaaaaaaaaaaaaaa'

/** A plain request to a port of a sandbox, by the one URL that serves all sandboxes. */
function ask(sandboxId, port, path = '/') {
  const headers = { 'E2b-Sandbox-Id': sandboxId, 'E2b-Sandbox-Port': String(port) }
  return new Promise((resolve, reject) => {
    const request = http.get(process.env.E2B_SANDBOX_URL + path, { headers, agent: false, timeout: 20_000 }, async (answer) => {
      resolve({ status: answer.statusCode, text: (await answer.toArray()).join('') })
    })
    request.on('timeout', () => request.destroy(new Error('no answer')))
    request.on('error', reject)
  })
}

async function until(what, condition, within = 15_000) {
  const end = Date.now() + within
  while (!(await condition())) {
    assert.ok(Date.now() < end, `never: ${what}`)
    await sleep(50)
  }
}

describe('one sandbox', { timeout: 120_000 }, () => {
  let sandbox
  before(async () => {
    sandbox = await Sandbox.create(TEMPLATE, { timeoutMs: 300_000, envs: { COLOUR: 'green' }, metadata: { kind: 'js' } })
  })
  after(() => sandbox?.kill())

  test('is running and described', async () => {
    assert.match(sandbox.sandboxId, /^i[a-z0-9]{20}$/)
    assert.equal(await sandbox.isRunning(), true)
    const info = await sandbox.getInfo()
    assert.equal(info.state, 'running')
    assert.deepEqual(info.metadata, { kind: 'js' })
  })

  test('runs commands', async () => {
    const result = await sandbox.commands.run('echo $COLOUR; echo err >&2')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['green\n', 'err\n', 0])
    await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
    assert.equal((await sandbox.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
    assert.equal((await sandbox.commands.run('pwd', { cwd: '/tmp' })).stdout, '/tmp\n')
    await assert.rejects(sandbox.commands.run('pwd', { cwd: '/no/such/place' }), InvalidArgumentError)
  })

  test('streams output', async () => {
    const pieces = []
    await sandbox.commands.run('for i in 1 2 3; do echo $i; sleep 0.3; done', { onStdout: (piece) => pieces.push(piece) })
    assert.equal(pieces.join(''), '1\n2\n3\n')
    assert.ok(pieces.length > 1, 'all at once')
  })

  test('feeds input', async () => {
    const handle = await sandbox.commands.run('cat', { background: true, stdin: true })
    await sandbox.commands.sendStdin(handle.pid, 'one\ntwo\n')
    await sandbox.commands.closeStdin(handle.pid)
    assert.equal((await handle.wait()).stdout, 'one\ntwo\n')
  })

  test('lists, connects to and kills background commands', async () => {
    const handle = await sandbox.commands.run('sleep 300', { background: true })
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === handle.pid))
    await handle.disconnect()
    const again = await sandbox.commands.connect(handle.pid)
    assert.equal(again.pid, handle.pid)
    assert.equal(await again.kill(), true)
    await until('gone', async () => !(await sandbox.commands.list()).some((process) => process.pid === handle.pid))
    assert.equal(await sandbox.commands.kill(999_999), false)
    await assert.rejects(sandbox.commands.connect(999_999), NotFoundError)
  })

  test('ends a command on time', async () => {
    const started = Date.now()
    await assert.rejects(sandbox.commands.run('sleep 10', { timeoutMs: 1000 }), TimeoutError)
    assert.ok(Date.now() - started < 6000)
  })

  test('runs two hundred commands at once', async () => {
    const results = await Promise.all(Array.from({ length: 200 }, (_, n) => sandbox.commands.run(`sleep 1; echo ${n}`)))
    assert.deepEqual(results.map((result) => result.stdout), Array.from({ length: 200 }, (_, n) => `${n}\n`))
  })

  test('keeps files', async () => {
    await sandbox.files.write('/tmp/js/text.txt', 'ünï ✓')
    assert.equal(await sandbox.files.read('/tmp/js/text.txt'), 'ünï ✓')
    const bytes = new Uint8Array(100_000).map((_, i) => i % 251)
    await sandbox.files.write('/tmp/js/bytes', bytes.buffer)
    assert.deepEqual(await sandbox.files.read('/tmp/js/bytes', { format: 'bytes' }), bytes)
    let size = 0
    for await (const chunk of await sandbox.files.read('/tmp/js/bytes', { format: 'stream' })) size += chunk.length
    assert.equal(size, bytes.length)
    const several = await sandbox.files.write([{ path: '/tmp/js/a', data: 'a' }, { path: '/tmp/js/sub/b', data: 'b' }])
    assert.deepEqual(several.map((info) => info.path), ['/tmp/js/a', '/tmp/js/sub/b'])
    assert.deepEqual((await sandbox.files.list('/tmp/js')).map((entry) => entry.name), ['a', 'bytes', 'sub', 'text.txt'])
    assert.equal((await sandbox.files.getInfo('/tmp/js/a')).size, 1)
    assert.equal(await sandbox.files.makeDir('/tmp/js/sub'), false)
    await sandbox.files.rename('/tmp/js/a', '/tmp/js/c')
    assert.equal(await sandbox.files.exists('/tmp/js/a'), false)
    await sandbox.files.remove('/tmp/js')
    await assert.rejects(sandbox.files.read('/tmp/js/c'), FileNotFoundError)
    await assert.rejects(sandbox.files.list('/tmp/js'), FileNotFoundError)
  })

  test('serves ports', async () => {
    const server = await sandbox.commands.run('python3 -m http.server 8000 --bind 127.0.0.1 -d /usr/share', { background: true })
    await until('listening', async () => (await ask(sandbox.sandboxId, 8000)).status === 200)
    assert.match((await ask(sandbox.sandboxId, 8000)).text, /Directory listing/)
    await server.kill()
    const closed = await ask(sandbox.sandboxId, 8001)
    assert.equal(closed.status, 502)
    assert.match(closed.text, /port is not open/)
    assert.match(sandbox.getHost(3000), new RegExp(`^3000-${sandbox.sandboxId}\\.`))
  })

  test('is connected to from elsewhere', async () => {
    const other = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 600_000 })
    await sandbox.files.write('/tmp/shared', 'seen')
    assert.equal(await other.files.read('/tmp/shared'), 'seen')
    await other.setTimeout(300_000)
  })

  test('is found in the list by its metadata', async () => {
    const found = []
    const pages = Sandbox.list({ query: { metadata: { kind: 'js' } }, limit: 1 })
    while (pages.hasNext) found.push(...(await pages.nextItems()).map((info) => info.sandboxId))
    assert.ok(found.includes(sandbox.sandboxId))
  })
})

/** A program whose count lives in memory only; what it says now. */
async function counting(sandbox) {
  await sandbox.files.write('/tmp/counter.mjs', `import http from 'node:http'
let count = 0
setInterval(() => count++, 10)
http.createServer((_, answer) => answer.end(String(count))).listen(8000, '127.0.0.1')`)
  await sandbox.commands.run('exec node /tmp/counter.mjs', { background: true, timeoutMs: 0 })
  await until('counting', async () => (await ask(sandbox.sandboxId, 8000)).status === 200)
}

async function count(sandbox) {
  let answer
  await until('a count', async () => (answer = await ask(sandbox.sandboxId, 8000)).status === 200)
  return Number(answer.text)
}

describe('pauses, snapshots and forks', { timeout: 120_000 }, () => {
  let sandbox
  before(async () => {
    sandbox = await Sandbox.create(TEMPLATE, { timeoutMs: 300_000, envs: { COLOUR: 'green' } })
    await counting(sandbox)
    await sandbox.files.write('/home/user/file', 'kept')
  })
  after(() => sandbox?.kill())

  test('is paused and goes on', async () => {
    const before = await count(sandbox)
    const running = await sandbox.commands.run('sleep 300', { background: true, timeoutMs: 0 })
    assert.equal(await sandbox.pause(), true)
    await assert.rejects(running.wait())
    assert.equal(await Sandbox.pause(sandbox.sandboxId), false, 'it is so already')
    assert.equal(await sandbox.isRunning(), false)
    assert.equal((await sandbox.getInfo()).state, 'paused')
    const again = await sandbox.connect({ timeoutMs: 300_000 })
    assert.equal(again.sandboxId, sandbox.sandboxId)
    assert.equal(await sandbox.isRunning(), true)
    assert.ok((await count(sandbox)) > before)
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === running.pid))
    const followed = await sandbox.commands.connect(running.pid)
    assert.equal(await followed.kill(), true)
    assert.equal((await sandbox.commands.run('echo $COLOUR; cat file')).stdout, 'green\nkept')
    await assert.rejects(Sandbox.pause(UNKNOWN), NotFoundError)
  })

  test('forks go on apart', async () => {
    const before = await count(sandbox)
    const made = await sandbox.fork({ count: 2, timeoutMs: 60_000 })
    try {
      assert.equal(new Set([sandbox.sandboxId, ...made.map((fork) => fork.sandboxId)]).size, 3)
      for (const fork of made) {
        assert.ok((await count(fork)) >= before)
        assert.equal(await fork.files.read('/home/user/file'), 'kept')
        await fork.files.write('/home/user/own', fork.sandboxId)
      }
      assert.equal(await sandbox.files.exists('/home/user/own'), false)
      assert.ok((await count(sandbox)) > before, 'the parent goes on')
    } finally {
      await Promise.all(made.map((fork) => fork.kill()))
    }
    await assert.rejects(sandbox.fork({ count: 101 }), SandboxError)
  })

  test('sandboxes are made of a snapshot', async () => {
    const before = await count(sandbox)
    const snapshot = await sandbox.createSnapshot()
    const listed = await sandbox.listSnapshots().nextItems()
    assert.ok(listed.some((it) => it.snapshotId === snapshot.snapshotId))
    const child = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 })
    assert.ok((await count(child)) >= before)
    assert.equal(await child.files.read('/home/user/file'), 'kept')
    await child.kill()
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
  })

  test('cp_157_every_call_by_its_name', async () => {
    const own = await Sandbox.create(TEMPLATE, { timeoutMs: 120_000 })
    try {
      await counting(own)
      assert.equal((await Sandbox.connect(own.sandboxId, { timeoutMs: 120_000 })).sandboxId, own.sandboxId)
      assert.ok((await Sandbox.list().nextItems()).some((it) => it.sandboxId === own.sandboxId))
      await own.setTimeout(300_000)
      const left = (await own.getInfo()).endAt - Date.now()
      assert.ok(left > 240_000 && left <= 301_000, `${left} ms are left`)
      assert.match(own.getHost(8000), new RegExp(`^8000-${own.sandboxId}\\.`))
      await until('metrics', async () => (await own.getMetrics()).length > 0, 20_000)
      const before = await count(own)
      const snapshot = await own.createSnapshot()
      const others = [await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 }), ...(await own.fork({ timeoutMs: 60_000 }))]
      assert.equal(others.length, 2)
      for (const other of others) {
        assert.ok((await count(other)) >= before)
        assert.equal(await other.kill(), true)
      }
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
      assert.equal(await own.pause(), true)
      await own.connect({ timeoutMs: 120_000 })
      assert.ok((await count(own)) > before)
    } finally {
      assert.equal(await own.kill(), true)
    }
  })

  test('a timeout pauses, and traffic resumes', async () => {
    const own = await Sandbox.create(TEMPLATE, { timeoutMs: 60_000, lifecycle: { onTimeout: 'pause', autoResume: true } })
    await counting(own)
    await own.setTimeout(0)
    await until('paused', async () => (await own.getInfo()).state === 'paused')
    assert.ok((await count(own)) > 0)
    assert.equal((await own.getInfo()).state, 'running')
    await own.kill()
  })
})

describe('ends and errors', { timeout: 120_000 }, () => {
  test('a kill ends a running command and is final', async () => {
    const sandbox = await Sandbox.create(TEMPLATE, { timeoutMs: 60_000 })
    const running = sandbox.commands.run('sleep 60')
    running.catch(() => {})
    await sleep(500)
    const started = Date.now()
    assert.equal(await Sandbox.kill(sandbox.sandboxId), true)
    await assert.rejects(running, (error) => error instanceof TimeoutError && /sandbox/i.test(error.message))
    assert.ok(Date.now() - started < 30_000)
    assert.equal(await sandbox.isRunning(), false)
    assert.equal(await sandbox.kill(), false)
    assert.equal((await ask(sandbox.sandboxId, 49983, '/health')).status, 502)
    await assert.rejects(sandbox.getInfo(), (error) => error instanceof SandboxError && /not found|doesn't exist/i.test(error.message))
    await assert.rejects(sandbox.commands.run('true'))
  })

  test('a sandbox ends on time', async () => {
    const sandbox = await Sandbox.create(TEMPLATE, { timeoutMs: 3000 })
    assert.equal(await sandbox.isRunning(), true)
    await until('expired', async () => !(await sandbox.isRunning()))
  })

  test('an unknown sandbox', async () => {
    assert.equal(await Sandbox.kill(UNKNOWN), false)
    await assert.rejects(Sandbox.connect(UNKNOWN), SandboxError)
    await assert.rejects(Sandbox.setTimeout(UNKNOWN, 1000), SandboxError)
  })

  test('an unknown template', () => assert.rejects(Sandbox.create('no-such-template'), /no-such-template/))

  test('an unknown key', () => assert.rejects(Sandbox.create(TEMPLATE, { apiKey: `e2b_${'0'.repeat(40)}` }), AuthenticationError))

  test('too long a life', () => assert.rejects(Sandbox.create(TEMPLATE, { timeoutMs: 25 * 3600 * 1000 }), /Timeout cannot be greater than 24 hours/))

  test('twenty sandboxes at once', async () => {
    const made = await Promise.all(Array.from({ length: 20 }, () => Sandbox.create(TEMPLATE, { timeoutMs: 60_000 })))
    const said = await Promise.all(made.map((sandbox) => sandbox.commands.run('echo $E2B_SANDBOX_ID')))
    assert.deepEqual(said.map((result) => result.stdout.trim()), made.map((sandbox) => sandbox.sandboxId))
    assert.deepEqual(await Promise.all(made.map((sandbox) => sandbox.kill())), made.map(() => true))
  })
})
