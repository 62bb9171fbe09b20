"""Processes of ours that die, and servers that come back."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import DATA, Server, run, until
from e2b import Sandbox, SandboxNotFoundException


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def marked(timeout: int = 120) -> Sandbox:
    """A sandbox with a file, and a program whose life shows that it was never restarted."""
    sandbox = Sandbox.create("base", timeout=timeout)
    sandbox.files.write("/tmp/mark", sandbox.sandbox_id)
    sandbox.commands.run("nohup sleep 3210 > /dev/null 2>&1 &")
    return sandbox


def unharmed(sandbox: Sandbox) -> bool:
    again = Sandbox.connect(sandbox.sandbox_id)
    return (
        again.files.read("/tmp/mark") == sandbox.sandbox_id
        and again.commands.run("pgrep -fc '^sleep 3210'").stdout == "1\n"
    )


def test_the_front_has_no_privilege(server):
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{server.front()}/status").read_text().splitlines() if ":\t" in line
    )
    assert all(uid != "0" for uid in fields["Uid"].split())
    assert all(gid != "0" for gid in fields["Gid"].split())
    assert fields.get("Groups", "").strip() == ""
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[capabilities], 16) == 0, capabilities
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_a_killed_front_is_replaced(server):
    sandbox = marked()
    front = server.front()
    os.kill(front, signal.SIGKILL)
    # The listener is the agent's: connections wait for the next front instead of being refused.
    until("a new front", lambda: server.front() not in (None, front) and server.answers(), 2 * 5)
    assert unharmed(sandbox)
    with Sandbox.create("base") as other:
        assert other.commands.run("echo new").stdout == "new\n"
    assert sandbox.kill()


def test_a_killed_agent_leaves_sandboxes_to_the_next_one(server):
    sandbox = marked()
    front = server.front()
    server.kill()
    until("the front ends with its agent", lambda: not alive(front))
    started = time.monotonic()
    server.start()
    assert time.monotonic() - started < 2 * 5
    assert unharmed(sandbox)
    assert sandbox.kill()
    assert not sandbox.is_running()


def test_a_start_waits_for_the_listener_of_the_last_one(server):
    """The front of a killed agent holds it for a moment more; here for a second."""
    sandbox = marked()
    front = server.front()
    os.kill(front, signal.SIGSTOP)
    try:
        server.kill()
        release = threading.Timer(1, os.kill, (front, signal.SIGCONT))
        release.start()
        server.start()
        release.join()
        # Until it has gone it answers too, and what it has accepted ends with it.
        until("the last front is gone", lambda: not alive(front))
    finally:
        if alive(front):
            os.kill(front, signal.SIGCONT)
    assert unharmed(sandbox)
    assert sandbox.kill()


def test_a_graceful_stop_leaves_sandboxes_to_the_next_start(server):
    sandbox = marked()
    assert server.stop() == 0
    server.start()
    assert unharmed(sandbox)
    assert [info.sandbox_id for info in Sandbox.list().next_items()] == [sandbox.sandbox_id]
    assert sandbox.kill()


def test_time_runs_out_while_no_server_runs(server):
    sandbox = marked(timeout=4)
    server.stop()
    time.sleep(5)
    server.start()
    until("the sandbox is over", lambda: not sandbox.is_running(), 5)
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


def test_a_sandbox_that_ends_by_itself_is_dead(server):
    """Root inside ends envd: the sandbox cannot be used any more, and says so instead of hanging."""
    sandbox = marked()
    try:
        sandbox.commands.run("sudo pkill -9 -f envd", timeout=10)
    except Exception:  # whatever the package makes of its stream being reset
        pass
    until("the sandbox is dead", lambda: not sandbox.is_running())
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


def test_clean_gives_everything_back():
    interfaces = set(os.listdir("/sys/class/net"))
    server = Server().start()
    marked()
    assert server.stop() == 0
    cleaned = run("clean", "--data-dir", str(DATA))
    assert cleaned.returncode == 0, cleaned.stderr
    assert str(DATA) not in Path("/proc/mounts").read_text()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert b"sleep\x003210" not in command, process
    until("its interfaces are gone", lambda: set(os.listdir("/sys/class/net")) <= interfaces)
    server.start()
    try:
        # The rows of what is gone are settled just after the start.
        until("nothing is listed", lambda: Sandbox.list().next_items() == [])
    finally:
        server.end()


def test_root_inside_cannot_stop_the_daemon(server):
    """A stopped daemon would leave a sandbox that looks alive and answers nobody."""
    # The oldest of that name: a program that it starts has the name as well for a moment, and stays stopped, as whoever stops it wants.
    stop = "sudo pkill -STOP -o -x envd"
    sandbox = marked()
    for _ in range(20):
        sandbox.commands.run(stop, timeout=10)
        assert sandbox.commands.run("echo goes on", timeout=10).stdout == "goes on\n"
    sandbox.commands.run(f"while :; do {stop}; done", background=True, timeout=0)
    for _ in range(5):
        assert sandbox.commands.run("echo goes on", timeout=20).stdout == "goes on\n"
    assert unharmed(sandbox)
    assert sandbox.kill()
