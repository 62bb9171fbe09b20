// The script of the page: xterm.js on a sandbox's /ws/pty, as docs/api.md shows it.
import { Terminal } from '@xterm/xterm'
import style from '@xterm/xterm/css/xterm.css'

document.head.appendChild(document.createElement('style')).textContent = style
const place = document.body.appendChild(document.createElement('div'))
const term = new Terminal({ cols: 90, rows: 30 })
term.open(place)
const notices = []
let closed

globalThis.attach = (url, protocols) => {
  const socket = new WebSocket(`${url}?cols=${term.cols}&rows=${term.rows}`, protocols)
  socket.binaryType = 'arraybuffer'
  socket.onmessage = ({ data }) => {
    if (typeof data === 'string') notices.push(JSON.parse(data))
    else term.write(new Uint8Array(data))
  }
  socket.onclose = ({ code, reason }) => (closed = { code, reason })
  term.onData((text) => socket.send(new TextEncoder().encode(text)))
  term.onResize(({ cols, rows }) => socket.send(JSON.stringify({ type: 'resize', cols, rows })))
  term.focus()
}
globalThis.resize = (cols, rows) => term.resize(cols, rows)
globalThis.notices = () => notices
globalThis.ending = () => closed
globalThis.shown = () => {
  const { active } = term.buffer
  return Array.from({ length: active.length }, (_, at) => active.getLine(at).translateToString(true)).join('\n')
}
