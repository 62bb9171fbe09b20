/** Which failures of a provider pass, and when to ask again. */

import { oneLine } from './execute.js'

interface ProviderError {
  status?: unknown
  statusCode?: unknown
  headers?: unknown
  code?: unknown
  body?: unknown
  name?: unknown
  message?: unknown
  cause?: unknown
  error?: { type?: unknown; error?: { type?: unknown } }
}

/** The stream ended before the model did. */
export class CutStreamError extends Error {
  override readonly name = 'CutStreamError'
}

function statusOf(error: ProviderError): number | undefined {
  const status = error.status ?? error.statusCode ?? error.code
  return typeof status === 'number' ? status : undefined
}

/** True for 429, 5xx (529 too), and for connections that failed or broke; false for all that would fail again. */
export function passes(error: unknown): boolean {
  if (typeof error !== 'object' || error === null) return false
  const given = error as ProviderError
  const status = statusOf(given)
  if (status !== undefined) return status === 429 || status >= 500
  if (error instanceof CutStreamError) return true
  // An error within a stream has the status of the stream, which was good.
  if ([given.error?.type, given.error?.error?.type].includes('overloaded_error')) return true
  const said = `${given.name} ${given.code} ${given.message}`
  if (
    /APIConnection|ConnectionError|ECONN|EPIPE|ENOTFOUND|ETIMEDOUT|EAI_AGAIN|UND_ERR|fetch failed|terminated|socket/i.test(
      said,
    )
  ) {
    return true
  }
  return given.cause !== undefined && passes(given.cause)
}

/** What the provider says of a failure, in one line that has its status. */
export function causeOf(error: unknown): string {
  const given = (typeof error === 'object' && error !== null ? error : {}) as ProviderError
  const status = statusOf(given)
  const said = oneLine(messageIn(given.body) ?? error)
  return status === undefined || said.includes(String(status)) ? said : `${status} ${said}`
}

/** Some clients have the provider's words in the body that they were sent only. */
function messageIn(body: unknown): string | undefined {
  if (typeof body !== 'string') return undefined
  try {
    const { message, error, errors } = JSON.parse(body)
    const found = message ?? error?.message ?? errors?.[0]?.message
    return typeof found === 'string' ? found : undefined
  } catch {
    return undefined
  }
}

/** Seconds to wait: what the provider asks for, else half a second doubled each time, up to 30, less a random part. */
export function wait(error: unknown, attempt: number, now = Date.now()): number {
  const asked = retryAfter((error as ProviderError | undefined)?.headers, now)
  return asked ?? Math.min(30, 0.5 * 2 ** attempt) * (0.5 + Math.random() / 2)
}

function retryAfter(headers: unknown, now: number): number | undefined {
  let value: unknown
  if (headers instanceof Headers) value = headers.get('retry-after')
  else if (typeof headers === 'object' && headers !== null) value = (headers as Record<string, unknown>)['retry-after']
  if (typeof value !== 'string' && typeof value !== 'number') return undefined
  const seconds = Number(value)
  if (Number.isFinite(seconds)) return Math.max(0, seconds)
  const date = Date.parse(String(value))
  return Number.isNaN(date) ? undefined : Math.max(0, (date - now) / 1000)
}
