"""What the loop of `soulbox-agents` adds to a call of a tool, and how soon it passes on what a model says.

Needs the template code-interpreter-slim and `.cache/venv-agents`. The model is a double in the same process, so no provider is measured.
"""

import json
import os
import statistics
import subprocess
from pathlib import Path

from client import API, KEY, call
from table import Table

TEMPLATE = "code-interpreter-slim"
PYTHON = Path(".cache/venv-agents/bin/python")

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


def said(program: str, *arguments: str) -> list:
    environment = os.environ | {"PYTHONPATH": "integrations/python/src"}
    return json.loads(subprocess.run([PYTHON, "-c", program, *arguments], capture_output=True, check=True, text=True, env=environment).stdout)


def measure(table: Table) -> None:
    if not PYTHON.exists():
        table.missing("agents", "scripts/setup.sh integrations was not run")
        return
    status, body = call(API, "GET", "/templates", None, KEY)
    if status != 200 or TEMPLATE.encode() not in body:
        table.missing("agents", f"the template {TEMPLATE} is not built")
        return
    for kind, (loop, alone) in zip(("awaited", "called"), said(CALLS, str(table.samples(400, 40)), TEMPLATE), strict=True):
        table.times(f"agents, {kind}: a turn with run_code", loop)
        table.times(f"agents, {kind}: run_code alone", alone)
        table.value(f"agents, {kind}: what the loop adds, p50", statistics.median(loop) - statistics.median(alone), "ms", most=15)
    for kind, late in zip(("blocking", "awaited"), said(TOKENS, str(table.samples(500, 50))), strict=True):
        table.times(f"agents, {kind} client: a token passed on", late, p50=5)
