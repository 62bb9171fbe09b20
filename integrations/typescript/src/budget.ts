/** Text that fits into a model's context. */

/** Providers count differently; four characters a token holds for English and code within a third. */
const CHARACTERS_PER_TOKEN = 4

/** Keeps beginning and end of a text, in whole lines where it has any, and says what was left out. */
export function cut(text: string, tokens: number): string {
  const room = tokens * CHARACTERS_PER_TOKEN
  if (text.length <= room) return text
  const lines = text.split('\n')
  const half = room / 2
  let head = 0
  let size = 0
  for (; head < lines.length; head++) {
    size += (lines[head] ?? '').length + 1
    if (size > half) break
  }
  let tail = lines.length
  size = 0
  for (; tail > head; tail--) {
    size += (lines[tail - 1] ?? '').length + 1
    if (size > half) break
  }
  if (head > 0 && tail < lines.length) {
    const said = `[${tail - head} of ${lines.length} lines are cut here]`
    return [...lines.slice(0, head), said, ...lines.slice(tail)].join('\n')
  }
  const said = `\n[${text.length - 2 * Math.floor(half)} of ${text.length} characters are cut here]\n`
  return text.slice(0, Math.floor(half)) + said + text.slice(text.length - Math.floor(half))
}
