// The loopback provider for the time of a test file, the six official clients for it, and what a test says about sandboxes.
import { spawn } from 'node:child_process'
import { after, before } from 'node:test'
import Anthropic from '@anthropic-ai/sdk'
import { Sandbox } from '@e2b/code-interpreter'
import { WatsonXAI } from '@ibm-cloud/watsonx-ai'
import { Mistral } from '@mistralai/mistralai'
import { anthropicModel, mistralModel, openaiModel, watsonxModel } from '@soulbox/agents'
import Groq from 'groq-sdk'
import { IamAuthenticator } from 'ibm-cloud-sdk-core'
import OpenAI from 'openai'
import Together from 'together-ai'

/** Absent: what the code interpreter's package takes. */
export const template = process.env.INTERPRETER_TEMPLATE

/** A provider for the tests of one file: `url` is set when they run. */
export function useProvider() {
  const provider = {
    url: undefined,
    /** What was asked, the oldest first. */
    requests: async () => (await fetch(`${provider.url}/_requests`)).json(),
    /** A scenario of a test's own, for the model `fake-NAME`. */
    scenario: (name, scenario) =>
      fetch(`${provider.url}/_scenarios/${name}`, {
        method: 'PUT',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(scenario),
      }),
    forget: () => fetch(`${provider.url}/_requests`, { method: 'DELETE' }),
  }
  let child
  before(async () => {
    const program = process.env.SOULBOX_FAKE_PROVIDER ?? 'target/ci/soulbox-fake-provider'
    child = spawn(program, ['--listen', '127.0.0.1:0'], { stdio: ['ignore', 'pipe', 'inherit'] })
    provider.url = await new Promise((resolve, reject) => {
      let said = ''
      child.stdout.on('data', (data) => {
        said += data
        const [, url] = /listening on (http:\S+)/.exec(said) ?? []
        if (url) resolve(url)
      })
      child.on('error', reject)
      child.on('exit', (code) => reject(new Error(`the provider ended with ${code}, having said: ${said}`)))
    })
  })
  after(() => child.kill())
  return provider
}

const watsonx = (url, apikey) =>
  WatsonXAI.newInstance({
    version: '2024-05-31',
    serviceUrl: `${url}/watsonx`,
    authenticator: new IamAuthenticator({ apikey, url: `${url}/watsonx` }),
  })

const projectId = '12ac4cf1-252f-424b-b52d-5cdd9814987f'

/** Each official client as its documentation makes it, but for the address. */
export const PROVIDERS = {
  anthropic: {
    client: (url, apiKey = 'key') => new Anthropic({ apiKey, baseURL: `${url}/anthropic` }),
    model: anthropicModel,
    path: '/anthropic/v1/messages',
  },
  mistral: {
    client: (url, apiKey = 'key') => new Mistral({ apiKey, serverURL: `${url}/mistral` }),
    model: mistralModel,
    path: '/mistral/v1/chat/completions',
  },
  groq: {
    client: (url, apiKey = 'key') => new Groq({ apiKey, baseURL: `${url}/groq` }),
    model: openaiModel,
    path: '/groq/openai/v1/chat/completions',
  },
  together: {
    client: (url, apiKey = 'key') => new Together({ apiKey, baseURL: `${url}/together/v1` }),
    model: openaiModel,
    path: '/together/v1/chat/completions',
  },
  fireworks: {
    client: (url, apiKey = 'key') => new OpenAI({ apiKey, baseURL: `${url}/fireworks/inference/v1` }),
    model: openaiModel,
    path: '/fireworks/inference/v1/chat/completions',
  },
  watsonx: {
    client: (url, apiKey = 'key') => watsonx(url, apiKey),
    model: (client, name, options) => watsonxModel(client, name, { projectId, ...options }),
    path: '/watsonx/ml/v1/text/chat_stream',
  },
}

export { projectId }

/** The prompt of a scenario whose code is given. */
export const ask = (code, language = 'python') => `Run this.\n\`\`\`${language}\n${code}\n\`\`\``

/** No run of a test finds what another left. */
const mark = (name) => `${name} of ${process.pid}`

/** The sandboxes, running or paused, that a test made under a name of its own. */
export async function sandboxesOf(name) {
  const pages = Sandbox.list({ query: { metadata: { test: mark(name) }, state: ['running', 'paused'] } })
  const found = []
  while (pages.hasNext) found.push(...(await pages.nextItems()))
  return found
}

/** Options of a conversation whose sandboxes `sandboxesOf(name)` finds. */
export const marked = (name) => ({ template, create: { metadata: { test: mark(name) } } })

/** The conversation, whose sandbox goes with the test. */
export function closed(t, conversation) {
  t.after(() => conversation.close())
  return conversation
}
