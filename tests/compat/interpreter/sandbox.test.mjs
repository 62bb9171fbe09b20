// The official JavaScript package against a real server. Runs from the folder that has it; see run.sh.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox, TimeoutError } from '@e2b/code-interpreter'

let sandbox
before(async () => { sandbox = await Sandbox.create({ timeoutMs: 300_000 }) })
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
