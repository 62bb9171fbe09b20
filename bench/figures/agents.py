"""What the three loops and `soulbox mcp` add to a call of a tool, and how soon the loops pass on what a model says.

Needs the template code-interpreter-slim, the folders of `scripts/setup.sh integrations`, and for what is ours in Rust BENCH_BINARY. The model
is a double, in the process of the loop or here, so no provider is measured.
"""

import contextlib
import http.server
import json
import os
import statistics
import subprocess
import threading
import time
from pathlib import Path

from client import API, KEY, call, create, kill
from interpreter import run
from table import Table, timed

TEMPLATE = "code-interpreter-slim"
PYTHON = Path(".cache/venv-agents/bin/python")
NODE = Path(".cache/node-agents")

# Turns of the same code, in the loop and by the official package in the same sandbox, one after the other so that both have the same weather.
CALLS = """
import asyncio, json, sys, time
from soulbox_agents import AsyncConversation, Conversation, Limits, Reply, ToolCall

count, template = int(sys.argv[1]), sys.argv[2]

class Model:
    name, sees_pictures, secrets = "double", False, ()
    left = 0
    def __init__(self):
        self.asked = []
    def open(self, system, messages, tools):
        # A turn is from one question to the next: its call, and all that the loop does around it.
        self.asked.append(time.perf_counter())
        self.left -= 1
        return iter([self.left])
    def assembler(self):
        return Assembler()

class Assembler:
    def feed(self, chunk):
        self.left = chunk
        return ""
    def finish(self):
        return Reply("done", () if self.left < 0 else (ToolCall("1", "run_code", {"code": "1+1"}),))

def between(asked):
    return [(b - a) * 1000 for a, b in zip(asked, asked[1:])]

limits = Limits(turns=None)
async def awaited():
    model = Model()
    async with AsyncConversation(model, template=template, limits=limits) as conversation:
        sandbox = await conversation.sandbox()
        await sandbox.run_code("1+1")
        loop, alone = [], []
        for _ in range(count // 20):
            model.asked, model.left = [], 20
            assert (await conversation.run("go")).calls == 20
            loop += between(model.asked)
            for _ in range(20):
                start = time.perf_counter()
                await sandbox.run_code("1+1")
                alone.append((time.perf_counter() - start) * 1000)
        return loop, alone
def called():
    model = Model()
    with Conversation(model, template=template, limits=limits) as conversation:
        sandbox = conversation.sandbox()
        sandbox.run_code("1+1")
        loop, alone = [], []
        for _ in range(count // 20):
            model.asked, model.left = [], 20
            assert conversation.run("go", lambda event: None).calls == 20
            loop += between(model.asked)
            for _ in range(20):
                start = time.perf_counter()
                sandbox.run_code("1+1")
                alone.append((time.perf_counter() - start) * 1000)
        return loop, alone
print(json.dumps([asyncio.run(awaited()), called()]))
"""

# A stream whose pieces carry the moment at which they came, from a client that blocks and from one that is awaited.
TOKENS = """
import asyncio, json, sys, time
from soulbox_agents import AsyncConversation, Conversation, Reply, Text

count = int(sys.argv[1])

class Model:
    name, sees_pictures, secrets = "double", False, ()
    def open(self, system, messages, tools):
        for _ in range(count):
            time.sleep(0.002)
            yield repr(time.perf_counter())
    def assembler(self):
        return Assembler()

class Awaited(Model):
    async def open(self, system, messages, tools):
        for _ in range(count):
            await asyncio.sleep(0.002)
            yield repr(time.perf_counter())

class Assembler:
    def feed(self, chunk):
        return chunk
    def finish(self):
        return Reply("done")

late = []
def heard(event):
    late.append((time.perf_counter() - float(event.text)) * 1000)

with Conversation(Model()) as conversation:
    assert conversation.run("go", heard).finished
blocking = list(late)
late.clear()
async def main():
    async with AsyncConversation(Awaited()) as conversation:
        assert (await conversation.run("go", heard)).finished
asyncio.run(main())
print(json.dumps([blocking, late]))
"""


# The same for @soulbox/agents.
NODE_PROGRAM = """
import { Conversation } from '@soulbox/agents'

const [count, pieces] = process.argv.slice(2).map(Number)
const now = () => performance.now()

const asked = []
let left = 0
const caller = {
  callsTools: true,
  async *stream() {
    asked.push(now())
    if (left-- > 0) yield { type: 'call', call: { id: '1', name: 'run_code', arguments: { code: '1+1' } } }
    yield { type: 'end' }
  },
}
const conversation = new Conversation({ model: caller, limits: { turns: 1000 } })
const sandbox = await conversation.sandbox.open()
await sandbox.runCode('1+1')
const loop = []
const alone = []
for (let round = 0; round < count / 20; round++) {
  asked.length = 0
  left = 20
  const { ending, calls } = await conversation.run('go')
  if (ending !== 'finished' || calls !== 20) throw new Error(`${ending} after ${calls}`)
  for (let index = 1; index < asked.length; index++) loop.push(asked[index] - asked[index - 1])
  for (let index = 0; index < 20; index++) {
    const start = now()
    await sandbox.runCode('1+1')
    alone.push(now() - start)
  }
}
await conversation.close()

const late = []
const talker = {
  callsTools: true,
  async *stream() {
    for (let index = 0; index < pieces; index++) {
      await new Promise((done) => setTimeout(done, 2))
      yield { type: 'text', text: String(now()) }
    }
    yield { type: 'end' }
  },
}
const onEvent = ({ type, text }) => type === 'text' && late.push(now() - Number(text))
await new Conversation({ model: talker }).run('go', { onEvent })
console.log(JSON.stringify([loop, alone, late]))
"""


class Service(http.server.ThreadingHTTPServer):
    """A service of models on loopback that answers by a scenario of one's own, as OpenAI's does."""

    daemon_threads = True

    def __init__(self, answers) -> None:
        super().__init__(("127.0.0.1", 0), Ask)
        self.answers = answers
        self.asked: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Ask(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(time.perf_counter())
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for delta, reason in self.server.answers(len(self.server.asked)):
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            self.wfile.write(f"data: {json.dumps({'id': '1', 'object': 'chat.completion.chunk', 'model': 'm', 'choices': [choice]})}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(answers):
    service = Service(answers)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()


def agent(binary: str, service: Service) -> subprocess.Popen:
    """`soulbox agent` with that service; its output is the model's text."""
    command = [binary, "agent", "go", "--provider", "compatible", "--model", "m", "--base-url", service.url, "--template", TEMPLATE]
    environment = os.environ | {"OPENAI_API_KEY": "key"}
    return subprocess.Popen([*command, "--max-turns", "1000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)


def calls_of_the_agent(binary: str, count: int) -> list[float]:
    """Turns with a call of run_code, from one question to the next."""
    function = {"name": "run_code", "arguments": json.dumps({"code": "1+1"})}

    def answers(turn: int):
        if turn <= count:
            yield {"role": "assistant", "tool_calls": [{"index": 0, "id": f"call-{turn}", "type": "function", "function": function}]}, None
            yield {}, "tool_calls"
        else:
            yield {"content": "Done."}, "stop"

    with serving(answers) as service:
        process = agent(binary, service)
        process.communicate(timeout=300)
        assert process.returncode == 0 and len(service.asked) == count + 1, (process.returncode, len(service.asked))
        # The first makes a connection.
        return [(b - a) * 1000 for a, b in zip(service.asked[1:], service.asked[2:])]


def tokens_of_the_agent(binary: str, count: int) -> list[float]:
    """From the moment at which a piece is sent to that at which it is printed."""
    sent: list[float] = []

    def answers(_turn: int):
        for number in range(count):
            time.sleep(0.002)
            sent.append(time.perf_counter())
            yield {"content": f"{number}\n"}, None
        yield {}, "stop"

    with serving(answers) as service:
        process = agent(binary, service)
        heard = [(int(line), time.perf_counter()) for line in process.stdout if line.strip()]
        assert process.wait(60) == 0 and len(heard) == count, (process.returncode, len(heard))
    return [(at - sent[number]) * 1000 for number, at in heard]


class Mcp:
    """`soulbox mcp` on standard input and output, asked line by line."""

    def __init__(self, binary: str) -> None:
        command = [binary, "mcp", "--template", TEMPLATE]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.number = 0
        client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "figures", "version": "1"}}
        self.ask("initialize", client)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def send(self, message: dict) -> None:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def ask(self, method: str, params: dict) -> dict:
        self.number += 1
        self.send({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        answer = json.loads(self.process.stdout.readline())
        assert answer["id"] == self.number and "result" in answer, answer
        return answer["result"]

    def run_code(self) -> None:
        ran = self.ask("tools/call", {"name": "run_code", "arguments": {"code": "1+1"}})
        assert ran["content"][0]["text"] == "2\n", ran

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0


def beside(sandbox: dict, count: int, ours) -> tuple[list[float], list[float]]:
    """A call of ours and the interpreter alone, in turn, so that both have the same weather."""
    pairs = [(timed(ours)[0], timed(run, sandbox, "1+1")[0]) for _ in range(count)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def rust(table: Table, binary: str) -> None:
    sandbox, server = create(TEMPLATE), Mcp(binary)
    try:
        server.run_code()
        run(sandbox, "1+1")
        ours, alone = beside(sandbox, table.samples(400, 40), server.run_code)
        table.times("soulbox mcp: run_code", ours)
        table.times("soulbox mcp: the interpreter alone", alone)
        table.value("soulbox mcp: what it adds, p50", statistics.median(ours) - statistics.median(alone), "ms", most=10)
        loop = calls_of_the_agent(binary, table.samples(400, 40))
        table.times("soulbox agent: a turn with run_code", loop)
        table.value("soulbox agent: what the loop adds, p50", statistics.median(loop) - statistics.median(alone), "ms", most=15)
        table.times("soulbox agent: a token passed on", tokens_of_the_agent(binary, table.samples(500, 50)), p50=5)
    finally:
        server.close()
        kill(sandbox)


def typescript(table: Table) -> None:
    subprocess.run(["tests/integrations/typescript/build.sh"], capture_output=True, check=True)
    program = NODE / "figures.mjs"
    program.write_text(NODE_PROGRAM)
    command = [NODE / "node_modules/node22/bin/node", program, str(table.samples(400, 40)), str(table.samples(500, 50))]
    environment = os.environ | {"SOULBOX_TEMPLATE": TEMPLATE}
    loop, alone, late = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout)
    table.times("agents, TypeScript: a turn with run_code", loop)
    table.times("agents, TypeScript: run_code alone", alone)
    table.value("agents, TypeScript: what the loop adds, p50", statistics.median(loop) - statistics.median(alone), "ms", most=15)
    table.times("agents, TypeScript: a token passed on", late, p50=5)


def said(program: str, *arguments: str) -> list:
    environment = os.environ | {"PYTHONPATH": "integrations/python/src"}
    return json.loads(subprocess.run([PYTHON, "-c", program, *arguments], capture_output=True, check=True, text=True, env=environment).stdout)


def measure(table: Table) -> None:
    status, body = call(API, "GET", "/templates", None, KEY)
    if status != 200 or TEMPLATE.encode() not in body:
        table.missing("agents", f"the template {TEMPLATE} is not built")
        return
    if binary := os.environ.get("BENCH_BINARY"):
        rust(table, binary)
    else:
        table.missing("soulbox agent, soulbox mcp", "BENCH_BINARY names no program")
    if not PYTHON.exists() or not NODE.exists():
        table.missing("agents", "scripts/setup.sh integrations was not run")
        return
    typescript(table)
    for kind, (loop, alone) in zip(("awaited", "called"), said(CALLS, str(table.samples(400, 40)), TEMPLATE), strict=True):
        table.times(f"agents, {kind}: a turn with run_code", loop)
        table.times(f"agents, {kind}: run_code alone", alone)
        table.value(f"agents, {kind}: what the loop adds, p50", statistics.median(loop) - statistics.median(alone), "ms", most=15)
    for kind, late in zip(("blocking", "awaited"), said(TOKENS, str(table.samples(500, 50))), strict=True):
        table.times(f"agents, {kind} client: a token passed on", late, p50=5)
