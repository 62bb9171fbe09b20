// The script of the page: the official package of the code interpreter, as a web application bundles it.
import { Sandbox } from '@e2b/code-interpreter'

globalThis.interpret = async ({ template, ...connection }) => {
  const sandbox = await Sandbox.create(template, { timeoutMs: 120_000, ...connection })
  try {
    const heard = []
    const plot = 'import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint("drawn")\n6 * 7'
    const { text, results, error } = await sandbox.runCode(plot, { onStdout: ({ line }) => void heard.push(line) })
    const context = await sandbox.createCodeContext({ language: 'js' })
    const script = await sandbox.runCode('[1, 2].map((n) => n * 2)', { context })
    const failed = await sandbox.runCode('1 / 0')
    await sandbox.removeCodeContext(context)
    const left = (await sandbox.listCodeContexts()).map(({ language }) => language)
    return { text, heard, error, chart: results[0].chart.type, script: script.text, failed: failed.error.name, left }
  } finally {
    await sandbox.kill()
  }
}
