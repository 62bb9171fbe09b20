"""Programs of all kinds are where they were after a pause, a kill of everything of ours, a new start and a resume."""

import os
import threading
import urllib.request

import pytest
from conftest import Server, until
from e2b import PtySize, Sandbox
from held import Held, interrupted
from sized import create

# `make soak` takes 1024.
HEAP_MIB = int(os.environ.get("SOULBOX_PAUSE_HEAP_MIB", "256"))
NODE = """
let count = 0
setInterval(() => count++, 10)
require('http').createServer((_, answer) => answer.end(String(count))).listen(8000)
"""


class Terminal:
    """What a terminal shows, from its start or from the moment in which it is connected to."""

    def __init__(self, handle) -> None:
        self.pid = handle.pid
        self.shown = ""
        threading.Thread(target=self.read, args=(handle,), daemon=True).start()

    def read(self, handle) -> None:
        try:
            for _, _, data in handle:
                self.shown += (data or b"").decode(errors="replace")
        except Exception:
            pass  # The stream ends with the pause; what was shown is what counts.

    def shows(self, text: str) -> None:
        try:
            until("", lambda: text in self.shown, 20)
        except AssertionError:
            raise AssertionError(f"not {text!r} but {self.shown!r}") from None


def asked(server: Server, sandbox: Sandbox, port: int) -> str:
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


@pytest.mark.timeout(240)
def test_what_programs_hold_is_kept(server: Server):
    """A large heap, 200 processes, sockets, watches, locks, shared memory, pipes, futexes (witnesses.py); Node; a terminal with vim."""
    sandbox = create(memoryMB=3072)
    held = Held(sandbox, heap_mib=HEAP_MIB)
    sandbox.files.write("/tmp/server.js", NODE)
    sandbox.commands.run("exec node /tmp/server.js", background=True, timeout=0)
    until("Node counts", lambda: "0" < sandbox.commands.run("curl -s localhost:8000 || true").stdout)
    terminal = Terminal(sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0))
    sandbox.pty.send_stdin(terminal.pid, b"MARK=kept; vi /home/user/poem\n")
    terminal.shows("[New")
    sandbox.pty.send_stdin(terminal.pid, b"iwritten before")
    terminal.shows("written before")
    before = int(asked(server, sandbox, 8000))

    # Twice: what was restored can be saved again.
    for line in ("first", "second"):
        sandbox = interrupted(server, sandbox)
        held.right(sandbox)
        until("Node counts on", lambda: int(asked(server, sandbox, 8000)) > before, 20)
        before = int(asked(server, sandbox, 8000))
        terminal = Terminal(sandbox.pty.connect(terminal.pid, timeout=0))
        sandbox.pty.send_stdin(terminal.pid, f"\r{line}".encode())
        terminal.shows(line)
    sandbox.pty.send_stdin(terminal.pid, b"\x1b:wq\r")
    terminal.shows("written")
    sandbox.pty.send_stdin(terminal.pid, b"echo $MARK-$?\n")
    terminal.shows("kept-0")
    assert sandbox.files.read("/home/user/poem") == "written before\nfirst\nsecond\n"
    sandbox.kill()
