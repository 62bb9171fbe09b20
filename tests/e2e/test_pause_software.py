"""Large programs go on after a pause, a kill of everything of ours, a new start and a resume.

Installing them takes a minute, so `make soak` does it: SOULBOX_PAUSE_SOFTWARE.
"""

import os

import pytest
from conftest import Server, until
from held import interrupted
from sized import create

pytestmark = pytest.mark.skipif("SOULBOX_PAUSE_SOFTWARE" not in os.environ, reason="`make soak PARTS=pauses` runs it")

SOFTWARE = "tmux postgresql-15"
KERNEL = """
import json, socket, sys
from jupyter_client import KernelManager
manager = KernelManager()
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
listener = socket.socket()
listener.bind(("127.0.0.1", 8888))
listener.listen()
# One connection of ZeroMQ for all questions, and the kernel's answers over it.
while True:
    connection, _ = listener.accept()
    with connection:
        shown = []
        hook = lambda message: shown.append(message["content"].get("text") or message["content"].get("evalue", ""))
        client.execute_interactive(connection.recv(1000).decode(), timeout=30, output_hook=hook)
        connection.sendall("".join(shown).encode())
"""
TELL = "import socket, sys; s = socket.create_connection(('127.0.0.1', 8888)); s.sendall(sys.argv[1].encode()); print(s.recv(1000).decode())"


@pytest.mark.timeout(600)
def test_software_goes_on(server: Server):
    """tmux, PostgreSQL with an open transaction, pip amid an installation, and a Jupyter kernel over ZeroMQ."""
    sandbox = create(memoryMB=2048)
    sandbox.set_timeout(900)
    run = sandbox.commands.run
    install = f"apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends {SOFTWARE}"
    run(f"{{ {install}; }} > /tmp/apt.log 2>&1 || {{ tail -5 /tmp/apt.log; exit 1; }}", user="root", timeout=300)
    run("pip install --quiet --no-input ipykernel && pip download --quiet --no-input --dest /tmp/wheels pandas scipy", timeout=200)

    run("tmux new-session -d -s work 'MARK=left bash' && tmux split-window -h 'MARK=right bash' && tmux send-keys -t work.0 vi ' /home/user/pane' Enter i kept")
    start = "su postgres -c '/usr/lib/postgresql/15/bin/pg_ctl -w -D /tmp/pg -o \"-c listen_addresses=127.0.0.1\" -l /tmp/pg.log start'"
    run(f"su postgres -c '/usr/lib/postgresql/15/bin/initdb -D /tmp/pg' > /dev/null && {start}", user="root", timeout=120)
    run("su postgres -c \"psql -q -c 'create table notes (note text)'\"", user="root")
    # A client whose transaction is open, fed by a named pipe that stays open.
    run("mkfifo -m 666 /tmp/statements; tail -f /dev/null > /tmp/statements", user="root", background=True, timeout=0)
    until("the pipe is there", lambda: sandbox.files.exists("/tmp/statements"))
    client = run("su postgres -c 'psql -At -v ON_ERROR_STOP=1' < /tmp/statements > /tmp/answers 2>&1", user="root", background=True, timeout=0)
    run("echo \"begin; insert into notes values ('uncommitted'); select pg_backend_pid();\" > /tmp/statements", user="root")
    until("the transaction is open", lambda: sandbox.files.read("/tmp/answers").strip()[-1:].isdigit())
    backend = sandbox.files.read("/tmp/answers").split()[-1]
    sandbox.files.write("/tmp/kernel.py", KERNEL)
    run("exec python3 /tmp/kernel.py > /tmp/kernel.log 2>&1", background=True, timeout=0)

    def kernel(code: str) -> str:
        return sandbox.commands.run(f'python3 -c "{TELL}" "{code}"', timeout=60).stdout.strip()

    until("the kernel is there", lambda: run("nc -z 127.0.0.1 8888 || ss -ltn | grep -q :8888 && echo yes || true").stdout == "yes\n", 60)
    assert kernel("held = list(range(1000)); print(sum(held))") == "499500"
    unpacking = run("pip install --quiet --no-input --no-index --find-links /tmp/wheels --target /tmp/site pandas scipy", background=True, timeout=0)
    until("pip unpacks", lambda: run("ls -d /tmp/pip-* 2> /dev/null | wc -l").stdout != "0\n", 30)

    sandbox = interrupted(server, sandbox)
    run = sandbox.commands.run
    assert kernel("held.append(1); print(sum(held))") == "499501"
    committed = "su postgres -c \"psql -At -c 'select count(*) from notes'\""
    assert run(committed, user="root").stdout == "0\n"
    run("echo 'select note, pg_backend_pid() from notes; commit;' > /tmp/statements", user="root")
    until("the client is answered", lambda: f"uncommitted|{backend}" in sandbox.files.read("/tmp/answers"))
    until("it is committed", lambda: run(committed, user="root").stdout == "1\n")
    run("tmux send-keys -t work.0 ' on' Escape :wq Enter && tmux send-keys -t work.1 'echo $MARK > /home/user/right' Enter")
    until("vim has written", lambda: sandbox.files.exists("/home/user/pane"))
    until("the other pane has written", lambda: sandbox.files.exists("/home/user/right") and sandbox.files.read("/home/user/right"))
    assert (sandbox.files.read("/home/user/pane"), sandbox.files.read("/home/user/right")) == ("kept on\n", "right\n")
    assert len(run("tmux list-panes -t work").stdout.splitlines()) == 2
    assert sandbox.commands.connect(unpacking.pid, timeout=120).wait().exit_code == 0
    imported = "import pandas, scipy.linalg; print(pandas.Series([1, 2]).sum(), scipy.linalg.det([[2, 0], [0, 2]]))"
    assert run(f"PYTHONPATH=/tmp/site python3 -c '{imported}'", timeout=60).stdout == "3 4.0\n"
    assert any(process.pid == client.pid for process in sandbox.commands.list())
    sandbox.kill()
