"""Forks of one sandbox at once, beside it: SOULBOX_FORKS of them (5; `make soak` takes 20)."""

import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Server, until
from e2b import Sandbox
from footprint import Objects
from held import Held

FORKS = int(os.environ.get("SOULBOX_FORKS", "5"))
HEAP_MIB = 100
# Its memory has a digest, which others can change page by page and ask for.
HOLDER = f"""
import hashlib, http.server, random
memory = bytearray(random.Random(3).randbytes({HEAP_MIB} << 20))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        mark = self.rfile.read(int(self.headers["content-length"]))
        for page in range(0, len(memory), 4096):
            memory[page : page + len(mark)] = mark
        self.do_GET()
    def do_GET(self):
        body = hashlib.sha256(memory).hexdigest().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Answer).serve_forever()
"""


def holder(sandbox: Sandbox, mark: str | None = None) -> str:
    """The digest of the memory that a sandbox holds, changed by the mark first if there is one."""
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    request = urllib.request.Request(os.environ["E2B_SANDBOX_URL"] + "/", headers=headers, data=mark and mark.encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def there(sandbox: Sandbox) -> bool:
    try:
        return bool(holder(sandbox))
    except urllib.error.URLError:
        return False


def token(sandbox: Sandbox) -> str:
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": os.environ["E2B_API_KEY"]}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["envdAccessToken"]


def refused_with(sandbox: Sandbox, other: str) -> bool:
    """Whether the daemon of a sandbox refuses the token of another one."""
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": other}
    request = urllib.request.Request(f"{os.environ['E2B_SANDBOX_URL']}/files?path=/etc/hostname&username=user", headers=headers)
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 401
    return False


def id_range(server: Server, slot: int) -> str:
    """The first ID on the host of the processes of a slot."""
    found = Objects.of(server.data).pids[slot]
    ranges = {Path(f"/proc/{pid}/uid_map").read_text().split()[1] for pid in found}
    assert len(ranges) == 1, ranges
    return ranges.pop()


@pytest.mark.timeout(120 + 10 * FORKS)
def test_forks_at_once_are_each_their_own(server: Server):
    parent = Sandbox.create("base", timeout=900)
    parent.files.write("/tmp/holder.py", HOLDER)
    parent.commands.run("exec python3 /tmp/holder.py", background=True, timeout=0)
    until("the memory is held", lambda: there(parent), 20)
    held = Held(parent, ("counter", "loopback", "shared", "locks", "threads"))
    before = holder(parent)
    began = time.monotonic()
    forks = parent.fork(count=FORKS, timeout=600)
    took = time.monotonic() - began
    print(f"\n{FORKS} forks of {HEAP_MIB} MiB in {took:.2f} s")
    assert len(forks) == FORKS and all(isinstance(fork, Sandbox) for fork in forks), forks
    everyone = [parent, *forks]
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(holder, everyone)) == {before}, "each begins with the parent's memory"
            own = list(pool.map(lambda fork: holder(fork, fork.sandbox_id), forks))
            assert len({before, *own}) == FORKS + 1, "each has changed its own"
            assert list(pool.map(holder, everyone)) == [before, *own], "and nobody else's"
            list(pool.map(held.right, everyone))
            tokens = list(pool.map(token, everyone))
            assert all(pool.map(lambda fork: refused_with(fork, tokens[0]), forks)), "the parent's token is the parent's"
        assert len(set(tokens)) == len({one.sandbox_id for one in everyone}) == FORKS + 1
        found = Objects.of(server.data)
        slots = [found.records[one.sandbox_id] for one in everyone]
        assert len(set(slots)) == FORKS + 1 and set(slots) <= found.addresses, "an outside address for each"
        assert len({id_range(server, slot) for slot in slots}) == FORKS + 1
        machines = {one.commands.run("cat /etc/machine-id").stdout for one in everyone}
        assert len(machines) == FORKS + 1, machines
    finally:
        for one in everyone:
            one.kill()
