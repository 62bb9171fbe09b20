'use client'

import { useChat } from '@ai-sdk/react'
import { isStaticToolUIPart } from 'ai'
import { type FormEvent, useEffect, useState } from 'react'
import { Chart } from './chart'
import type { ChatMessage } from './tools'

/** The chat's id is in the address, so that a page that is loaded again is in the same sandbox. */
export default function Page() {
  const [id, setId] = useState<string>()
  useEffect(() => {
    if (location.hash.length < 2) history.replaceState(null, '', `#${crypto.randomUUID()}`)
    setId(location.hash.slice(1))
  }, [])
  return id ? <Chat id={id} /> : null
}

function Chat({ id }: { id: string }) {
  const { messages, sendMessage, status, stop, error } = useChat<ChatMessage>({ id })
  const [text, setText] = useState('')
  const busy = status === 'submitted' || status === 'streaming'

  function send(event: FormEvent) {
    event.preventDefault()
    if (busy || !text.trim()) return
    sendMessage({ text })
    setText('')
  }

  return (
    <main>
      <h1>A chat that runs code</h1>
      {messages.map((message) => (
        <article key={message.id} className={message.role}>
          {message.parts.map((part, index) => (
            <Part key={`${message.id} ${index}`} part={part} />
          ))}
        </article>
      ))}
      {error && <p role="alert">{error.message}</p>}
      <form onSubmit={send}>
        <textarea name="prompt" rows={3} value={text} onChange={(event) => setText(event.target.value)} />
        {busy ? (
          <button type="button" onClick={stop}>
            Stop
          </button>
        ) : (
          <button type="submit">Send</button>
        )}
      </form>
    </main>
  )
}

function Part({ part }: { part: ChatMessage['parts'][number] }) {
  if (part.type === 'text') return <p>{part.text}</p>
  if (!isStaticToolUIPart(part)) return null
  const input = part.input as Record<string, string> | undefined
  return (
    <section className="call">
      <pre>{input?.code ?? input?.command ?? JSON.stringify(input)}</pre>
      {part.state === 'output-error' && <pre className="failed">{part.errorText}</pre>}
      {part.state === 'output-available' && (
        <>
          <pre className={part.output.failed ? 'failed' : 'output'}>{part.output.text}</pre>
          {part.output.pictures.map((picture, index) => (
            <figure key={index}>
              <Chart picture={picture} />
            </figure>
          ))}
        </>
      )}
    </section>
  )
}
