/** Code in the text of models that call no tools. */

export interface FencedCode {
  readonly language: string
  readonly code: string
}

const LANGUAGES: Readonly<Record<string, string>> = {
  py: 'python',
  python: 'python',
  python3: 'python',
  js: 'javascript',
  javascript: 'javascript',
  ts: 'typescript',
  typescript: 'typescript',
  bash: 'bash',
  sh: 'bash',
  shell: 'bash',
}

/**
 * The fenced blocks of a text that are code to run, in their order. Blocks of other languages (output, JSON, ...) or of none
 * are left out; so is one that has no end, because its code was cut.
 */
export function fencedCode(text: string): FencedCode[] {
  const found: FencedCode[] = []
  let open: { fence: string; language: string | undefined; lines: string[] } | undefined
  for (const line of text.split('\n')) {
    if (open) {
      const end = line.trim()
      if (end.startsWith(open.fence) && end.replaceAll(open.fence.charAt(0), '') === '') {
        const code = open.lines.join('\n')
        if (open.language && code.trim() !== '') found.push({ language: open.language, code })
        open = undefined
      } else {
        open.lines.push(line)
      }
      continue
    }
    const start = /^ {0,3}(`{3,}|~{3,})\s*([\w+-]*)/.exec(line)
    if (start?.[1]) open = { fence: start[1], language: LANGUAGES[(start[2] ?? '').toLowerCase()], lines: [] }
  }
  return found
}

/** What such a model is told beside the user's own instructions. */
export const FENCED_INSTRUCTIONS =
  'You can run code. Write it in one fenced block that names its language (```python), and stop; you are then told what it ' +
  'printed. State is kept between blocks. When you have the answer, write it without any fenced block.'
