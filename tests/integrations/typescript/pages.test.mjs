// The programs of docs/integrations, run as they stand.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { projectId, useProvider } from './support.mjs'

const provider = useProvider()
const repository = process.env.SOULBOX_REPOSITORY
const docs = path.join(repository, 'docs/integrations')
const PROVIDERS = ['anthropic', 'codestral', 'fireworks', 'groq', 'together', 'watsonx']
const FRAMEWORKS = { 'vercel-ai-sdk': 'vercel-ai-sdk.mjs', agentkit: 'agentkit.mjs' }

async function program(page) {
  const text = await readFile(path.join(docs, `${page}.md`), 'utf8')
  return /^## JavaScript$[^]*?^```js\n([^]*?\n)```$/m.exec(text)?.[1]
}

function environment() {
  // No key of this machine, and none but these.
  const own = Object.entries(process.env).filter(([name]) => /^(E2B_|PATH$|SOULBOX_TEMPLATE$)/.test(name))
  return {
    ...Object.fromEntries(own),
    ANTHROPIC_API_KEY: 'key',
    ANTHROPIC_BASE_URL: `${provider.url}/anthropic`,
    MISTRAL_API_KEY: 'key',
    MISTRAL_BASE_URL: `${provider.url}/mistral`,
    GROQ_API_KEY: 'key',
    GROQ_BASE_URL: `${provider.url}/groq`,
    FIREWORKS_API_KEY: 'key',
    FIREWORKS_BASE_URL: `${provider.url}/fireworks/inference`,
    TOGETHER_API_KEY: 'key',
    TOGETHER_BASE_URL: `${provider.url}/together/v1`,
    WATSONX_APIKEY: 'key',
    WATSONX_URL: `${provider.url}/watsonx`,
    WATSONX_IAM_URL: `${provider.url}/watsonx`,
    WATSONX_PROJECT_ID: projectId,
  }
}

/** Runs a page's program in a folder of its own. */
async function run(t, page, question) {
  const folder = path.join(import.meta.dirname, `page ${page}`)
  await mkdir(folder, { recursive: true })
  t.after(() => rm(folder, { recursive: true, force: true }))
  await writeFile(path.join(folder, 'program.mjs'), await program(page))
  const options = { cwd: folder, env: environment(), timeout: 120_000 }
  const ended = await promisify(execFile)(process.execPath, ['program.mjs', question], options)
  return { ...ended, files: await readdir(folder), folder }
}

const CHART = '```python\nimport matplotlib.pyplot as plt\nprint("drawing")\nplt.plot([1, 4, 9])\nplt.show()\n```'

for (const page of PROVIDERS) {
  test(`ci_082_pages_of_providers: ${page}`, async (t) => {
    await provider.forget()
    const { stdout, files, folder } = await run(t, page, `Draw.\n${CHART}`)
    assert.match(stdout, /^drawing$/m)
    assert.deepEqual(files.sort(), ['chart-1.png', 'program.mjs'])
    assert.equal((await readFile(path.join(folder, 'chart-1.png'))).subarray(1, 4).toString(), 'PNG')
    assert.deepEqual((await provider.requests()).filter(({ violation }) => violation), [])
  })
}

test('a program fails when its run did not finish', async (t) => {
  await assert.rejects(run(t, 'groq', '[scenario: error-400]'), ({ code, stderr }) => {
    assert.match(stderr, /error-400/)
    return code === 1
  })
})

test('pages of frameworks show the examples', async () => {
  for (const [page, example] of Object.entries(FRAMEWORKS)) {
    assert.equal(await program(page), await readFile(path.join(repository, 'examples', example), 'utf8'), page)
  }
})
