// The chat of examples/nextjs: built, served, and used in Chromium as its user uses it.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { CONVERSATION_KEY } from '@soulbox/agents'
import { Sandbox } from '@e2b/code-interpreter'
import { chromium } from 'playwright-core'
import { ask, useProvider } from './support.mjs'

const provider = useProvider()
const folder = path.resolve(import.meta.dirname, '../examples/nextjs')
const next = path.resolve(import.meta.dirname, '../node_modules/next/dist/bin/next')
let address, server

function run(args, env = {}) {
  return spawn(process.execPath, [next, ...args], {
    cwd: folder,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
}

/** All that a program says; rejects when it ends before `until` is said, or at its end with another code than 0. */
function said(child, until) {
  return new Promise((resolve, reject) => {
    let text = ''
    const heard = (data) => {
      text += data
      if (until?.test(text)) resolve(text)
    }
    child.stdout.on('data', heard)
    child.stderr.on('data', heard)
    child.on('error', reject)
    child.on('exit', (code) => (code === 0 && !until ? resolve(text) : reject(new Error(`ended with ${code}:\n${text}`))))
  })
}

const freePort = () =>
  new Promise((resolve) => {
    const listener = createServer().listen(0, '127.0.0.1', () => {
      const { port } = listener.address()
      listener.close(() => resolve(port))
    })
  })

before(async () => {
  await said(run(['build']))
  const port = await freePort()
  address = `http://127.0.0.1:${port}/`
  server = run(['start', '--hostname', '127.0.0.1', '--port', String(port)], {
    MODEL: 'fake-tool',
    MODEL_API_KEY: 'canary-41c8f0',
    MODEL_BASE_URL: `${provider.url}/compatible/v1`,
  })
  await said(server, /Ready in/)
})
after(() => server?.kill('SIGKILL'))

async function sandboxesOf(chat) {
  return Sandbox.list({ query: { metadata: { [CONVERSATION_KEY]: chat }, state: ['running', 'paused'] } }).nextItems()
}

test('ci_088_nextjs_one_sandbox_a_chat', async (t) => {
  const profile = await mkdtemp(path.join(tmpdir(), 'soulbox-chromium-'))
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    // As root it has no sandbox of its own. What runs in it here is ours.
    args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update'],
    headless: true,
    timeout: 60_000,
  })
  t.after(async () => {
    await browser.close()
    await rm(profile, { recursive: true, force: true })
  })
  const page = await browser.newPage()
  page.setDefaultTimeout(60_000)
  const heard = []
  page.on('console', (message) => heard.push(message.text()))
  page.on('pageerror', (error) => heard.push(String(error)))
  page.on('response', async (response) => heard.push(await response.text().catch(() => '')))
  await page.goto(address)

  const send = async (text) => {
    const answer = page.locator('article.assistant').nth(await page.locator('article.assistant').count())
    await page.fill('textarea', text)
    await page.click('button[type=submit]')
    // The button is there again when the answer is whole.
    await answer.locator('p', { hasText: 'The code answered' }).waitFor()
    await page.locator('button[type=submit]').waitFor()
    return answer
  }

  const first = await send(ask('kept = 6 * 7\nprint(kept)'))
  assert.equal(await first.locator('.output').textContent(), '42')
  const chat = new URL(page.url()).hash.slice(1)
  t.after(async () => {
    for (const { sandboxId } of await sandboxesOf(chat)) await Sandbox.kill(sandboxId)
  })
  const [sandbox, ...others] = await sandboxesOf(chat)
  assert.deepEqual(others, [])

  const second = await send(ask('print(kept + 1)'))
  assert.equal(await second.locator('.output').textContent(), '43')

  // Loaded again, days later: the same chat, whose sandbox was paused meanwhile.
  await Sandbox.pause(sandbox.sandboxId)
  await page.reload()
  const third = await send(ask('print(kept + 2)'))
  assert.equal(await third.locator('.output').textContent(), '44')
  assert.deepEqual((await sandboxesOf(chat)).map(({ sandboxId, state }) => [sandboxId, state]), [[sandbox.sandboxId, 'running']])

  const plot = `import matplotlib.pyplot as plt
plt.plot([0, 1, 2], [0, 1, 4], label="squares"); plt.title("Growth"); plt.xlabel("n"); plt.show()
plt.figure(); plt.bar(["a", "b"], [3, 5]); plt.title("Bars"); plt.show()
plt.figure(); plt.pie([1, 3], labels=["small", "large"]); plt.title("Shares"); plt.show()
plt.figure(); plt.imshow([[1, 2], [3, 4]]); plt.show()`
  const drawn = await send(ask(plot))
  const places = await drawn.locator('svg[aria-label=Growth] [data-series=squares] polyline').getAttribute('points')
  const [[x0, y0], [x1, y1], [x2, y2]] = places.split(' ').map((place) => place.split(',').map(Number))
  // Screens count downwards: 0, 1, 4 rise by one and by three parts of the same size.
  assert.ok(Math.abs(x2 - x1 - (x1 - x0)) < 0.01 && Math.abs(y1 - y2 - 3 * (y0 - y1)) < 0.01, places)
  const heights = await drawn.locator('svg[aria-label=Bars] rect').evaluateAll((bars) => bars.map((bar) => bar.height.baseVal.value))
  assert.ok(Math.abs(heights[0] / heights[1] - 3 / 5) < 0.001, `${heights}`)
  assert.equal(await drawn.locator('svg[aria-label=Shares] path').count(), 2)
  // What is no chart of numbers is shown as it was drawn.
  assert.ok(await drawn.locator('figure img').evaluate((image) => image.complete && image.naturalWidth > 0))

  const told = heard.join('\n')
  assert.ok(told.includes('kept + 1'), 'answers of the server are in what is searched')
  assert.ok(!told.includes('canary-41c8f0') && !told.includes(process.env.E2B_API_KEY), 'keys stay on the server')
})

test('ci_088_nextjs_refuses_what_is_no_chat', async () => {
  const ask = (body) => fetch(`${address}api/chat`, { method: 'POST', body: JSON.stringify(body) })
  for (const id of [undefined, 'short', '../../etc/passwd-and-more', 'x'.repeat(65)]) {
    assert.equal((await ask({ id, messages: [] })).status, 400)
  }
})
