// Debian's Chromium without a screen, and pages for it: an HTML file whose script is bundled from one of this folder, served
// from an origin that is neither the API's nor a sandbox's.
import http from 'node:http'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { build } from 'esbuild'
import { chromium } from 'playwright-core'

const FLAGS = [
  '--no-sandbox', // As root it has none. What runs in it here is ours.
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

// As web bundlers do it: what a package takes from Node for its use there is an empty module here.
const withoutNode = {
  name: 'without-node',
  setup(bundler) {
    bundler.onResolve({ filter: /^node:/ }, ({ path }) => ({ path, namespace: 'absent' }))
    bundler.onLoad({ filter: /.*/, namespace: 'absent' }, () => ({ contents: 'module.exports = {}' }))
  },
}

async function bundle(script) {
  const entryPoints = [path.join(import.meta.dirname, script)]
  const built = await build({
    entryPoints,
    // The code interpreter's package has an e2b of its own.
    nodePaths: [path.join(import.meta.dirname, '../node-interpreter/node_modules')],
    bundle: true,
    write: false,
    format: 'esm',
    platform: 'browser',
    logLevel: 'error',
    loader: { '.css': 'text' },
    plugins: [withoutNode],
  })
  return built.outputFiles[0].text
}

function serve(script) {
  const server = http.createServer((request, response) => {
    if (request.url === '/page.js') {
      response.setHeader('content-type', 'text/javascript')
      response.end(script)
    } else if (request.url === '/') {
      response.setHeader('content-type', 'text/html; charset=utf-8')
      response.end('<!doctype html><title>page</title><body></body><script type="module" src="/page.js"></script>')
    } else {
      response.writeHead(404).end()
    }
  })
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)))
}

/**
 * Opens a page whose script is bundled from `script`, and calls `use(page)` with playwright's page when the script has run.
 * The script leaves what the test calls on `globalThis`. Everything is closed afterwards, whatever happens.
 */
export async function withPage(script, use) {
  const profile = await mkdtemp(path.join(tmpdir(), 'soulbox-chromium-'))
  let server, browser
  try {
    server = await serve(await bundle(script))
    const executablePath = process.env.CHROMIUM || '/usr/bin/chromium'
    browser = await chromium.launchPersistentContext(profile, { executablePath, args: FLAGS, headless: true, timeout: 60_000 })
    const page = await browser.newPage()
    const said = []
    page.on('console', (message) => said.push(message.text()))
    page.on('pageerror', (error) => said.push(String(error)))
    await page.goto(`http://127.0.0.1:${server.address().port}/`, { waitUntil: 'load' })
    try {
      return await use(page)
    } catch (error) {
      error.message += `\nthe page said:\n${said.join('\n')}`
      throw error
    }
  } finally {
    await browser?.close()
    server?.closeAllConnections()
    server?.close()
    await rm(profile, { recursive: true, force: true })
  }
}

/** How a page reaches the server of the test: it has no environment. */
export const connection = {
  apiKey: process.env.E2B_API_KEY,
  apiUrl: process.env.E2B_API_URL,
  sandboxUrl: process.env.E2B_SANDBOX_URL,
}
