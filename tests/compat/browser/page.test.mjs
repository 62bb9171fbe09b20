// The official package in a page of another origin: every request to the API and to a sandbox is asked for by CORS first.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { connection, withPage } from './harness.mjs'

test('ci_075_a_page_of_another_origin', { timeout: 180_000 }, async () => {
  const said = await withPage('page.mjs', (page) => page.evaluate((options) => exercise(options), connection))
  assert.deepEqual(said.slice(1), ['commands', 'files', 'terminal', 'killed'])
})
