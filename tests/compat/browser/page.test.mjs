// The official package in a page of another origin: every request to the API and to a sandbox is asked for by CORS first.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { connection, withPage } from './harness.mjs'

test('ci_075_a_page_of_another_origin', { timeout: 180_000 }, async () => {
  const said = await withPage('page.mjs', (page) => page.evaluate((options) => exercise(options), connection))
  assert.deepEqual(said.slice(1), ['commands', 'files', 'terminal', 'killed'])
})

test('ci_075_code_of_a_page', { timeout: 180_000 }, async () => {
  const options = { template: process.env.INTERPRETER_TEMPLATE, ...connection }
  const seen = await withPage('interpreter.mjs', (page) => page.evaluate((options) => interpret(options), options))
  assert.deepEqual(seen, {
    text: '42',
    heard: ['drawn\n'],
    error: undefined,
    chart: 'line',
    script: '[ 2, 4 ]',
    failed: 'ZeroDivisionError',
    left: ['python', 'javascript'],
  })
})
