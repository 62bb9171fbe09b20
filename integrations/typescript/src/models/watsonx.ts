import type { Call, Model, ModelEvent, ModelOptions, ModelRequest } from '../model.js'
import { openaiTools } from '../tools.js'
import { type Chunk, chatEvents, chatMessages } from './openai.js'

/** A client of `@ibm-cloud/watsonx-ai`. */
export interface WatsonxClient {
  textChatStream: Call
}

export interface WatsonxOptions extends ModelOptions {
  /** Or `spaceId` in `extra`. */
  projectId?: string
}

export function watsonxModel(client: WatsonxClient, modelId: string, options: WatsonxOptions = {}): Model {
  const { callsTools = true, seesPictures = false, maxTokens, projectId, extra } = options

  async function* stream({ system, messages, tools, signal }: ModelRequest): AsyncGenerator<ModelEvent> {
    const body = {
      ...extra,
      modelId,
      ...(projectId ? { projectId } : {}),
      ...(maxTokens ? { maxTokens } : {}),
      ...(callsTools ? { tools: openaiTools(tools) } : {}),
      messages: chatMessages(system, messages, seesPictures),
      returnObject: true,
    }
    const events = await asked(client.textChatStream({ ...body, signal }))
    yield* chatEvents(chunksOf(events))
  }

  return { callsTools, stream }
}

async function* chunksOf(events: AsyncIterable<{ data: Chunk }>): AsyncGenerator<Chunk> {
  for await (const { data } of events) yield data
}

/** Of an answer that was to be a stream and is an error, the client does not read the body: it is what says why. */
async function asked(answer: PromiseLike<unknown>): Promise<AsyncIterable<{ data: Chunk }>> {
  try {
    return (await answer) as AsyncIterable<{ data: Chunk }>
  } catch (error) {
    const failed = error as { result?: AsyncIterable<Uint8Array>; body?: string }
    if (typeof failed.result?.[Symbol.asyncIterator] === 'function') {
      const parts: Uint8Array[] = []
      for await (const part of failed.result) parts.push(part)
      failed.body = Buffer.concat(parts).toString()
    }
    throw error
  }
}
