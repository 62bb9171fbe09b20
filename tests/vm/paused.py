"""A sandbox that was paused before its machine lost power goes on afterwards: `paused.py before|after FILE`, through the official package.

The machine is emulated and slow: nothing here measures. What the sandbox was is in FILE.
"""

import json
import sys
import time
from pathlib import Path

from e2b import Sandbox, SandboxState

PATIENCE = 300
WAIT = {"timeout": PATIENCE, "request_timeout": PATIENCE}
when, noted = sys.argv[1], Path(sys.argv[2])
# It holds random bytes and a number that it counts on, and tells both to whoever connects.
COUNTER = """
import hashlib, os, socket, threading, time
held, counted = os.urandom(8 << 20), 0
def count():
    global counted
    while True:
        counted += 1
        time.sleep(0.01)
threading.Thread(target=count, daemon=True).start()
server = socket.create_server(("127.0.0.1", 7000))
while True:
    client, _ = server.accept()
    client.sendall(f"{os.getpid()} {hashlib.sha256(held).hexdigest()} {counted}".encode())
    client.close()
"""
ASK = "python3 -c 'import socket; print(socket.create_connection((\"127.0.0.1\", 7000), 60).recv(1000).decode())'"


def state(sandbox: Sandbox) -> tuple[str, str, int]:
    pid, held, counted = sandbox.commands.run(ASK, **WAIT).stdout.split()
    return pid, held, int(counted)


def asked(sandbox: Sandbox) -> tuple[str, str, int]:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return state(sandbox)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


if when == "before":
    sandbox = Sandbox.create(timeout=3600, request_timeout=PATIENCE)
    sandbox.files.write("/home/user/counter.py", COUNTER, request_timeout=PATIENCE)
    sandbox.commands.run("python3 counter.py", background=True, timeout=0, request_timeout=PATIENCE)
    noted.write_text(json.dumps([sandbox.sandbox_id, *asked(sandbox)]))
    assert sandbox.pause(request_timeout=PATIENCE) is True
    print("paused: the machine may lose its power now")
else:
    sandbox_id, pid, held, counted = json.loads(noted.read_text())
    assert Sandbox.get_info(sandbox_id, request_timeout=PATIENCE).state == SandboxState.PAUSED
    sandbox = Sandbox.connect(sandbox_id, timeout=3600, request_timeout=PATIENCE)
    now = state(sandbox)
    assert now[:2] == (pid, held) and now[2] >= counted, (now, pid, held, counted)
    # It goes on, in a machine whose clock is right.
    time.sleep(2)
    assert state(sandbox)[2] > now[2]
    assert sandbox.kill(request_timeout=PATIENCE)
    print("a paused sandbox has survived its machine's end")
