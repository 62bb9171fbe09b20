// Builds of templates by the official JavaScript builder against the server of E2B_API_URL and E2B_SANDBOX_URL. Run from a folder that has
// the package (tests/compat/run.sh copies this file there): node --test builds.test.mjs
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { Sandbox, Template, waitForPort } from 'e2b'

const RUN = randomUUID()
const names = new Set()
let folder

/** Builds a template of this run alone; its name and its log. */
async function build(steps, { name = `js-${randomUUID().slice(0, 12)}`, base, ...more } = {}) {
  names.add(name)
  const begun = Template({ fileContextPath: folder })
  const based = base ? begun.fromTemplate(base) : begun.fromImage('e2bdev/base')
  const lines = []
  const onBuildLogs = (entry) => lines.push(entry.message)
  await Template.build(steps(based.setEnvs({ RUN_OF_TESTS: RUN })), name, { onBuildLogs, ...more })
  return { name, lines }
}

async function inside(name, command) {
  const sandbox = await Sandbox.create(name, { timeoutMs: 120_000 })
  try {
    return (await sandbox.commands.run(command)).stdout.trim()
  } finally {
    await sandbox.kill()
  }
}

describe('templates', { timeout: 240_000 }, () => {
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'soulbox-js-'))
    await mkdir(join(folder, 'tree/sub'), { recursive: true })
    await writeFile(join(folder, 'tree/sub/file'), 'deep')
    await writeFile(join(folder, 'tree/ü name'), 'umlaut')
    await symlink('sub/file', join(folder, 'tree/link'))
  })
  after(async () => {
    const headers = { 'X-API-Key': process.env.E2B_API_KEY }
    for (const name of names) await fetch(`${process.env.E2B_API_URL}/templates/${name}`, { method: 'DELETE', headers })
    await rm(folder, { recursive: true })
  })

  test('steps, users and folders', async () => {
    const { name, lines } = await build((t) =>
      t.runCmd('id -un; pwd').runCmd('id -un > /who', { user: 'root' }).setWorkdir('/srv/app').runCmd('pwd > where').setUser('worker'),
    )
    const said = lines.filter((line) => line.includes('[stdout]: ')).map((line) => line.split('[stdout]: ')[1])
    assert.deepEqual(said, ['user', '/home/user'])
    assert.equal(await inside(name, 'cat /who /srv/app/where; id -un'), 'root\n/srv/app\nworker')
  })

  test('a tree is copied, and what was built is found again', async () => {
    const steps = (t) => t.copy('tree', 'tree').runCmd('cat tree/link > copy')
    const { name } = await build(steps)
    assert.equal(await inside(name, 'cat copy "tree/ü name"; readlink tree/link'), 'deepumlautsub/file')
    const { lines } = await build(steps, { name })
    const made = lines.filter((line) => / (RUN|COPY) /.test(line))
    assert.ok(made.length === 2 && made.every((line) => line.startsWith('CACHED ')), made.join('\n'))
  })

  test('a step is forced', async () => {
    const { name } = await build((t) => t.runCmd('date +%N > ~/when'))
    const before = await inside(name, 'cat ~/when')
    await build((t) => t.skipCache().runCmd('date +%N > ~/when'), { name })
    assert.notEqual(await inside(name, 'cat ~/when'), before)
  })

  test('a server is there when a sandbox is', async () => {
    const { name, lines } = await build((t) => t.setStartCmd('cd /tmp && python3 -m http.server 8129', waitForPort(8129)))
    assert.ok(lines.includes('Template is ready'), lines.join('\n'))
    assert.equal(await inside(name, "curl -s -o /dev/null -w '%{http_code}' localhost:8129/"), '200')
  })

  test('a template is tagged, looked up and built upon', async () => {
    const { name } = await build((t) => t.runCmd('echo first > ~/first'))
    await Template.assignTags(name, ['stable'])
    assert.equal(await Template.exists(name), true)
    assert.equal(await Template.exists(`none-${RUN}`), false)
    const child = await build((t) => t.runCmd('cat ~/first > ~/second'), { base: `${name}:stable` })
    assert.equal(await inside(child.name, 'cat ~/second'), 'first')
    await Template.removeTags(name, ['stable'])
    await assert.rejects(Sandbox.create(`${name}:stable`), /tag 'stable' does not exist/)
  })

  test('cli_079_the_trace_leads_to_the_call', async () => {
    await writeFile(join(folder, 'plain'), 'plain')
    const lines = (await readFile(new URL(import.meta.url), 'utf8')).split('\n')
    const at = lines.findIndex((line) => line.endsWith('// its second source fails')) + 1
    const failed = build((t) => {
      t = t.runCmd('true')
      t = t.copy(['plain', 'tree'], '/srv/taken', { user: 'root' }) // its second source fails
      return t.runCmd('true')
    })
    await assert.rejects(failed, (error) => {
      assert.match(error.message, /failed to copy 'tree' to '\/srv\/taken'/)
      assert.ok(error.stack.includes(`builds.test.mjs:${at}:`), error.stack)
      return true
    })
  })

  test('what fails says why, and where the call was', async () => {
    const failed = build((t) => t.runCmd('true').runCmd('echo reason >&2; exit 4'))
    await assert.rejects(failed, (error) => {
      assert.match(error.message, /exit status 4/)
      assert.match(error.stack, /builds\.test\.mjs/)
      return true
    })
    await assert.rejects(build((t) => t.copy('not-there', 'x')), /not-there/)
    await assert.rejects(build((t) => t.runCmd('true'), { base: `none-${RUN}` }), /not found/)
    await assert.rejects(build((t) => t.runCmd('true'), { memoryMB: 127 }), /400/)
  })
})
