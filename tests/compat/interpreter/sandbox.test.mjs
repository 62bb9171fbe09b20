// The official JavaScript package against a real server. Runs from the folder that has it; see run.sh.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { Sandbox, TimeoutError } from '@e2b/code-interpreter'

let sandbox
// Absent: whatever the package asks for.
const template = process.env.INTERPRETER_TEMPLATE
const create = (options) => (template ? Sandbox.create(template, options) : Sandbox.create(options))

before(async () => { sandbox = await create({ timeoutMs: 300_000 }) })
after(() => sandbox.kill())

test('run_code as in the quickstart', async () => {
    const execution = await sandbox.runCode('x = 1; x')
    assert.equal(execution.text, '1')
    assert.equal((await sandbox.runCode('x += 1; x')).text, '2')
})

test('ci_044_output_and_extra', async () => {
    const heard = []
    await sandbox.runCode('print(1)', { onStdout: (message) => heard.push(message.line) })
    assert.deepEqual(heard, ['1\n'])
    const plot = await sandbox.runCode('import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()')
    assert.deepEqual(plot.results[0].extra, {})
    assert.equal(plot.results[0].chart.type, 'line')
    assert.ok(plot.results[0].png)
})

test('ci_045_a_timeout_interrupts', async () => {
    await sandbox.runCode('kept = 5')
    const start = performance.now()
    await assert.rejects(sandbox.runCode('import time; time.sleep(300)', { timeoutMs: 3000 }), TimeoutError)
    const took = performance.now() - start
    assert.ok(took >= 2900 && took < 6000, `${took} ms`)
    assert.equal((await sandbox.runCode('kept')).text, '5')
})

test('contexts', async () => {
    const context = await sandbox.createCodeContext({ language: 'js', cwd: '/tmp' })
    assert.equal((await sandbox.runCode('process.cwd()', { context })).text, '/tmp')
    assert.equal((await sandbox.listCodeContexts()).at(-1).id, context.id)
    await sandbox.restartCodeContext(context)
    await sandbox.removeCodeContext(context)
    await assert.rejects(sandbox.runCode('1', { context }), /not found/)
})

test('an unknown language is an error', async () => {
    await assert.rejects(sandbox.runCode('1', { language: 'cobol' }), /500/)
})

// The package in other runtimes, which lie beside this one's packages.
const SMOKE = `
import { Sandbox } from '@e2b/code-interpreter'
const template = process.env.INTERPRETER_TEMPLATE
const sandbox = template ? await Sandbox.create(template) : await Sandbox.create()
try {
    const heard = []
    const { logs } = await sandbox.runCode('print("Hello, World!")', { onStdout: (message) => heard.push(message.line) })
    console.log(JSON.stringify([logs.stdout, heard, (await sandbox.runCode('[1, 2]')).results[0].json]))
} finally {
    await sandbox.kill()
}
`
const RUNTIMES = [
    ['ci_042_bun', '@oven/bun-linux-x64/bin/bun', []],
    ['ci_043_deno', '@deno/linux-x64-glibc/deno', ['run', '--allow-all', '--no-config', '--node-modules-dir=manual', '--no-remote']],
]
for (const [name, program, flags] of RUNTIMES) {
    test(name, { timeout: 120_000 }, async () => {
        const found = path.join(import.meta.dirname, '../clients/node_modules', program)
        assert.ok(existsSync(found), `${found} is of scripts/setup.sh clients`)
        writeFileSync(path.join(import.meta.dirname, 'smoke.mjs'), SMOKE)
        const { stdout } = await promisify(execFile)(found, [...flags, 'smoke.mjs'], { cwd: import.meta.dirname, timeout: 100_000 })
        assert.deepEqual(JSON.parse(stdout), [['Hello, World!\n'], ['Hello, World!\n'], [1, 2]])
    })
}
