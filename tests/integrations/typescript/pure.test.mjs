// What needs no server.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { anthropicTools, cut, fencedCode, openaiTools, parseArguments } from '@soulbox/agents'

test('fenced code is found, and nothing else', () => {
  const text = [
    'First:',
    '```python',
    'print("""',
    '~~~',
    '""")',
    '```',
    '```json',
    '{}',
    '```',
    '~~~~js',
    '```',
    '1',
    '~~~~',
    '```',
    'x = 1',
    '```',
    '```bash',
    'ls',
    'cut off',
  ].join('\n')
  assert.deepEqual(fencedCode(text), [
    { language: 'python', code: 'print("""\n~~~\n""")' },
    { language: 'javascript', code: '```\n1' },
  ])
  assert.deepEqual(fencedCode('no code, but `x` inline'), [])
})

test('a text is cut in whole lines, and says so', () => {
  const rows = Array.from({ length: 1000 }, (_, row) => `row ${row}`)
  const lines = cut(rows.join('\n'), 100).split('\n')
  const said = lines.findIndex((line) => /^\[\d+ of 1000 lines are cut here\]$/.test(line))
  const left = Number(/\d+/.exec(lines[said])[0])
  assert.deepEqual([...lines.slice(0, said), ...lines.slice(said + 1)], [...rows.slice(0, said), ...rows.slice(said + left)])
  assert.ok(lines.join('\n').length < 450)
  assert.equal(cut('short', 100), 'short')
  assert.match(cut('x'.repeat(1000), 100), /^x{200}\n\[600 of 1000 characters are cut here\]\nx{200}$/)
})

test('arguments are what the tool says', () => {
  const parsed = (name, given) => parseArguments({ id: '1', name, arguments: given })
  assert.deepEqual(parsed('run_code', '{"code": "1", "language": null}'), { code: '1' })
  assert.deepEqual(parsed('list_files', ''), {})
  assert.match(parsed('run_code', '{"code": '), /not JSON/)
  assert.match(parsed('run_code', '[]'), /not an object/)
  assert.match(parsed('run_code', '{}'), /needs the argument code/)
  assert.match(parsed('run_code', '{"code": 1}'), /not a string/)
  assert.match(parsed('run_code', '{"code": "1", "more": "2"}'), /has no argument more/)
  assert.match(parsed('toString', '{}'), /no tool toString/)
})

test('tools in both shapes', () => {
  assert.deepEqual(
    anthropicTools().map(({ name, input_schema }) => [name, input_schema.required]),
    openaiTools().map(({ function: { name, parameters } }) => [name, parameters.required]),
  )
})
