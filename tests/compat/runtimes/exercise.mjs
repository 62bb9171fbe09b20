// What the official package does most: commands, files, a terminal, errors. It uses nothing of any runtime, so the same
// text runs in Node, Bun, Deno and a page of a browser.

function equal(found, expected, what) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)]
  if (a !== b) throw new Error(`${what}: ${a} instead of ${b}`)
}

async function refused(promise, kind, what) {
  try {
    await promise
  } catch (error) {
    if (error instanceof kind) return
    throw new Error(`${what}: ${error.name}: ${error.message} instead of ${kind.name}`)
  }
  throw new Error(`${what}: was not refused`)
}

async function eventually(what, condition, within = 20_000) {
  const end = Date.now() + within
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`never: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

async function commands(sandbox, { CommandExitError, NotFoundError }) {
  const result = await sandbox.commands.run('echo out; echo err >&2', { envs: { A: 'b' } })
  equal([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0], 'a command')
  await refused(sandbox.commands.run('exit 3'), CommandExitError, 'an exit code')
  const pieces = []
  await sandbox.commands.run('for i in 1 2 3; do echo $i; sleep 0.2; done', { onStdout: (piece) => void pieces.push(piece) })
  equal(pieces.join(''), '1\n2\n3\n', 'streamed output')
  const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(cat.pid, 'ünï ✓\n')
  await sandbox.commands.closeStdin(cat.pid)
  equal((await cat.wait()).stdout, 'ünï ✓\n', 'standard input')
  const sleep = await sandbox.commands.run('sleep 300', { background: true })
  equal((await sandbox.commands.list()).some((it) => it.pid === sleep.pid), true, 'the list of commands')
  equal(await sleep.kill(), true, 'a kill')
  await refused(sandbox.commands.connect(999_999), NotFoundError, 'an unknown command')
}

async function files(sandbox, { FileNotFoundError }) {
  await sandbox.files.write('/tmp/box/text.txt', 'ünï ✓')
  equal(await sandbox.files.read('/tmp/box/text.txt'), 'ünï ✓', 'a text')
  const bytes = new Uint8Array(100_000).map((_, i) => i % 251)
  await sandbox.files.write('/tmp/box/bytes', bytes.buffer)
  const read = await sandbox.files.read('/tmp/box/bytes', { format: 'bytes' })
  equal([read.length, read[250], read[99_999]], [100_000, 250, 99_999 % 251], 'bytes')
  equal((await sandbox.files.list('/tmp/box')).map((it) => it.name).sort(), ['bytes', 'text.txt'], 'a list')
  await sandbox.files.rename('/tmp/box/text.txt', '/tmp/box/other.txt')
  equal(await sandbox.files.exists('/tmp/box/text.txt'), false, 'the old name')
  const events = []
  const watch = await sandbox.files.watchDir('/tmp/box', (event) => void events.push(event.name))
  await sandbox.files.write('/tmp/box/watched.txt', 'x')
  await eventually('a watched change', () => events.includes('watched.txt'))
  await watch.stop()
  await sandbox.files.remove('/tmp/box')
  await refused(sandbox.files.read('/tmp/box/other.txt'), FileNotFoundError, 'a removed file')
}

async function terminal(sandbox) {
  let seen = ''
  const decoder = new TextDecoder()
  const pty = await sandbox.pty.create({ cols: 80, rows: 24, timeoutMs: 0, onData: (data) => void (seen += decoder.decode(data, { stream: true })) })
  const type = (text) => sandbox.pty.sendInput(pty.pid, new TextEncoder().encode(text))
  await type('stty size\n')
  await eventually('the first size', () => seen.includes('24 80'))
  await sandbox.pty.resize(pty.pid, { cols: 101, rows: 33 })
  await type('stty size\n')
  await eventually('the second size', () => seen.includes('33 101'))
  await type('exit\n')
  equal((await pty.wait()).exitCode, 0, 'the end of a terminal')
}

/** Makes a sandbox, uses and kills it. `connection` holds the options that elsewhere come from the environment. */
export async function exercise(e2b, connection, say) {
  const sandbox = await e2b.Sandbox.create({ timeoutMs: 120_000, ...connection })
  try {
    say(`created ${sandbox.sandboxId}`)
    await commands(sandbox, e2b)
    say('commands')
    await files(sandbox, e2b)
    say('files')
    await terminal(sandbox)
    say('terminal')
    equal(await sandbox.isRunning(), true, 'running')
  } finally {
    await sandbox.kill()
  }
  equal(await sandbox.isRunning(), false, 'running after the kill')
  say('killed')
}
