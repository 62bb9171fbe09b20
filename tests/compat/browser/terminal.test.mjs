// A terminal in a page: keys go in, the screen comes out, sizes follow, the end is told.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Sandbox } from 'e2b'
import { withPage } from './harness.mjs'

const until = (page, text) => page.waitForFunction((text) => shown().includes(text), text, { timeout: 30_000 })

test('xterm_js_on_ws_pty', { timeout: 120_000 }, async () => {
  const sandbox = await Sandbox.create('base', { timeoutMs: 120_000 })
  try {
    const shared = new URL(process.env.E2B_SANDBOX_URL)
    const host = `49983-${sandbox.sandboxId}.localhost:${shared.port}`
    const protocols = ['soulbox.pty.v1', `soulbox.token.${sandbox.envdAccessToken}`]
    await withPage('terminal.mjs', async (page) => {
      await page.evaluate(([url, protocols]) => attach(url, protocols), [`ws://${host}/ws/pty`, protocols])
      await page.waitForFunction(() => notices()[0]?.type === 'start')
      await page.keyboard.type('stty size; printf "b\\303\\244r\\n"; id -un\n')
      for (const text of ['30 90', 'bär', '\nuser']) await until(page, text)
      await page.evaluate(() => resize(100, 40))
      await page.keyboard.type('stty size\n')
      await until(page, '40 100')
      // Ready before it says so: an interrupt that comes before the program does is nobody's.
      await page.keyboard.type('sh -c \'trap "echo cau""ght; exit" INT; echo rea""dy; while :; do sleep 1; done\'\n')
      await until(page, 'ready')
      await page.keyboard.press('Control+c')
      await until(page, 'caught')
      await page.keyboard.type('echo after-the-$((1+1))nd; exit 5\n')
      await until(page, 'after-the-2nd')
      await page.waitForFunction(() => ending())
      assert.deepEqual(await page.evaluate(() => ending()), { code: 4005, reason: 'exit status 5' })
      const exit = { type: 'exit', exitCode: 5, exited: true, status: 'exit status 5' }
      assert.deepEqual((await page.evaluate(() => notices())).at(-1), exit)

      // A browser hides why it was refused; the same URL asked plainly tells the page.
      const refused = await page.evaluate(async (url) => {
        const socket = new WebSocket(url.replace('http', 'ws'))
        const { code } = await new Promise((resolve) => (socket.onclose = resolve))
        const answer = await fetch(url)
        return { code, status: answer.status, body: await answer.json() }
      }, `http://${host}/ws/pty`)
      assert.equal(refused.code, 1006)
      assert.equal(refused.status, 401)
      assert.match(refused.body.message, /an access token is needed/)
    })
  } finally {
    await sandbox.kill()
  }
})
