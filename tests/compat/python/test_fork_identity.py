"""What tells copies of one sandbox apart: machine-id, generation, hooks; and which random numbers are equal until a program is told."""

import json
import re

import pytest
from conftest import api
from e2b import Sandbox
from test_pause import post

HOOK = "/etc/soulbox/on-fork.d"
# Draws once before the copy, so that its generators are seeded, and again at each request. SIGUSR1 is how a hook tells it.
PYTHON = """
import http.server, json, os, random, signal, ssl, uuid
ssl.RAND_bytes(16); random.random()
def renew(*_):
    ssl.RAND_add(os.urandom(32), 32.0)
    random.seed(os.urandom(32))
signal.signal(signal.SIGUSR1, renew)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"openssl": ssl.RAND_bytes(16).hex(), "random": random.random(), "kernel": os.urandom(16).hex(),
            "uuid4": str(uuid.uuid4())}).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 8001), Answer).serve_forever()
"""
NODE = """
const crypto = require('crypto')
crypto.randomBytes(16); Math.random()
require('http').createServer((_, answer) => answer.end(JSON.stringify({openssl: crypto.randomBytes(16).toString('hex'),
  random: Math.random(), uuid: crypto.randomUUID()}))).listen(8002, '127.0.0.1')
"""


def drawn(sandbox: Sandbox, port: int) -> dict:
    return json.loads(sandbox.commands.run(f"curl -s --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:{port}").stdout)


def started(sandbox: Sandbox) -> None:
    sandbox.files.write("/tmp/draw.py", PYTHON)
    sandbox.files.write("/tmp/draw.js", NODE)
    sandbox.commands.run("exec python3 /tmp/draw.py", background=True, timeout=0)
    sandbox.commands.run("exec node /tmp/draw.js", background=True, timeout=0)
    drawn(sandbox, 8001), drawn(sandbox, 8002)


def forks(sandbox: Sandbox) -> list[Sandbox]:
    answer = post(f"/sandboxes/{sandbox.sandbox_id}/fork", {"count": 2, "timeout": 120})
    assert answer.status == 201, answer.text
    return [Sandbox.connect(item["sandbox"]["sandboxID"]) for item in json.loads(answer.body)]


def as_root(sandbox: Sandbox, command: str) -> str:
    return sandbox.commands.run(command, user="root").stdout


def hook(sandbox: Sandbox, name: str, text: str, mode: str = "755") -> None:
    sandbox.files.write(f"{HOOK}/{name}", text, user="root")
    as_root(sandbox, f"chmod {mode} {HOOK}/{name}")


@pytest.fixture
def ended():
    made: list[Sandbox] = []
    yield made
    for sandbox in made:
        sandbox.kill()


def test_each_sandbox_has_a_machine_id_of_its_own(own, ended):
    sandbox, other = own(), own()
    ids = [each.files.read("/etc/machine-id") for each in (sandbox, other)]
    for text in ids:
        assert re.fullmatch(r"[0-9a-f]{32}\n", text), text
    ended += forks(sandbox)
    ids += [each.files.read("/etc/machine-id") for each in ended]
    assert len(set(ids)) == 4, ids
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("/etc/machine-id") == ids[0], "it is the same one"


def test_without_a_hook_copies_draw_the_same(own, ended):
    """Known, and said so in docs/pause.md: a restore brings generators back as they were. The kernel's own are fresh."""
    sandbox = own()
    started(sandbox)
    ended += forks(sandbox)
    python = [drawn(each, 8001) for each in ended]
    node = [drawn(each, 8002) for each in ended]
    for equal in ("openssl", "random"):
        assert python[0][equal] == python[1][equal], equal
        assert node[0][equal] == node[1][equal], equal
    assert node[0]["uuid"] == node[1]["uuid"], "Node makes them ahead, of OpenSSL"
    for fresh in ("kernel", "uuid4"):
        assert python[0][fresh] != python[1][fresh], fresh
    commands = [each.commands.run("python3 -c 'import ssl; print(ssl.RAND_bytes(16).hex())'").stdout for each in ended]
    assert commands[0] != commands[1], "a program that is started in a copy is none"


def test_a_hook_tells_programs(own, ended):
    """Run in the order of their names, as root, before the fork is answered; what fails is noted and the rest runs."""
    sandbox = own()
    started(sandbox)
    hook(sandbox, "10-fails", "#!/bin/sh\necho out of order; exit 3\n")
    hook(sandbox, "20-tells", "#!/bin/sh\npkill -USR1 -f /tmp/draw.py\nid -u >> /tmp/order\n")
    hook(sandbox, "30-slow", "#!/bin/sh\nexec sleep 60\n")
    hook(sandbox, "40-last", '#!/bin/sh\necho "$SOULBOX_GENERATION $E2B_SANDBOX_ID" >> /tmp/order\n')
    hook(sandbox, "50-text", "not a hook\n", mode="644")
    ended += forks(sandbox)
    python = [drawn(each, 8001) for each in ended]
    assert python[0]["openssl"] != python[1]["openssl"] and python[0]["random"] != python[1]["random"]
    generations = [each.files.read("/run/soulbox/generation").strip() for each in ended]
    assert len(set(generations)) == 2 and all(re.fullmatch("[0-9a-f]{32}", each) for each in generations)
    for each, generation in zip(ended, generations):
        assert each.files.read("/tmp/order") == f"0\n{generation} {each.sandbox_id}\n"
        assert each.files.read("/run/soulbox/on-fork.log", user="root") == "out of order\n"
    log = logged(ended[0].sandbox_id)
    outcomes = {line["hook"]: line["outcome"] for line in log if "hook" in line}
    assert outcomes["10-fails"] == "exit status 3" and "killed after" in outcomes["30-slow"], outcomes
    assert outcomes["20-tells"] == outcomes["40-last"] == "done" and "50-text" not in outcomes
    assert not sandbox.files.exists("/tmp/order"), "the parent is no copy"


def test_a_pause_is_no_copy_and_a_snapshot_is(own):
    sandbox = own()
    hook(sandbox, "10-count", "#!/bin/sh\necho copied >> /tmp/copies\n")
    snapshot = sandbox.create_snapshot().snapshot_id
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert not again.files.exists("/tmp/copies") and not again.files.exists("/run/soulbox/generation")
    with Sandbox.create(snapshot, timeout=120) as child:
        assert child.files.read("/tmp/copies") == "copied\n"
        first = child.files.read("/run/soulbox/generation")
        child.pause()
        assert Sandbox.connect(child.sandbox_id).files.read("/run/soulbox/generation") == first
    answer = post(f"/sandboxes/{sandbox.sandbox_id}/rollback", {"snapshotID": snapshot})
    assert answer.status == 204, answer.text
    assert again.files.read("/tmp/copies") == "copied\n", "what was drawn since the snapshot would be drawn again"
    assert again.files.read("/run/soulbox/generation") != first


def logged(sandbox_id: str) -> list[dict]:
    answer = api("GET", f"/v2/sandboxes/{sandbox_id}/logs")
    assert answer.status == 200, answer.text
    return [entry["fields"] for entry in json.loads(answer.body)["logs"]]
