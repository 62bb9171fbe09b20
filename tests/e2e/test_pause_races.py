"""What arrives while a sandbox is being paused: one winner, the one of docs/pause.md, and nobody waits for ever."""

import io
import os
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from conftest import Server, until
from e2b import NotFoundException, Sandbox, SandboxException, SandboxState
from held import Held

# So much memory takes so long to save that what follows arrives amid it.
HEAP_MIB = 100
# From before the pause has begun to when it may have ended.
MOMENTS = (0, 0.05, 0.3)


@pytest.fixture(scope="module")
def server():
    made = Server()
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture
def held(server):
    """A sandbox that holds something, and those that came of it."""
    sandbox = Sandbox.create("base", timeout=600)
    yield Held(sandbox, ("counter", "heap", "pipes"), HEAP_MIB)
    sandbox.kill()


def status(sandbox: Sandbox, action: str, body: bytes = b"{}", method: str = "POST") -> int:
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}{action}",
        method=method,
        data=body,
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def snapshots(server: Server) -> set[str]:
    """Those of other tests may be collected meanwhile."""
    return {path.name for path in (server.data / "pool/snapshots").iterdir()}


def during_a_pause(held: Held, after: float, action: str, body: bytes = b"{}", method: str = "POST") -> tuple[int, int]:
    """The answers to a pause and to what is asked so many seconds later."""
    with ThreadPoolExecutor(1) as pool:
        pausing = pool.submit(status, held.sandbox, "/pause")
        time.sleep(after)
        asked = status(held.sandbox, action, body, method)
        return pausing.result(60), asked


def resumed(held: Held) -> None:
    sandbox = Sandbox.connect(held.sandbox.sandbox_id, timeout=600)
    held.right(sandbox)


def test_streams_end_and_their_programs_do_not(held: Held):
    sandbox = held.sandbox
    handles = [sandbox.commands.run("n=0; while :; do n=$((n + 1)); echo $n; done", background=True, timeout=0) for _ in range(4)]
    seen = [0] * len(handles)

    def read(number: int) -> None:
        for output, _, _ in handles[number]:
            if output:
                seen[number] = int(output.split()[-1])

    with ThreadPoolExecutor(len(handles)) as pool:
        reading = [pool.submit(read, number) for number in range(len(handles))]
        until("all of them write", lambda: min(seen) > 1000)
        assert sandbox.pause() is True
        for stream in reading:
            with pytest.raises(SandboxException):
                stream.result(20)
    sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    for number, handle in enumerate(handles):
        again = sandbox.commands.connect(handle.pid, timeout=60)
        for output, _, _ in again:
            # A line may have been cut where the stream ended.
            if output and len(lines := output.split()) > 2:
                assert int(lines[1]) > seen[number] and int(lines[-1]) == int(lines[1]) + len(lines) - 2
                break
        else:
            raise AssertionError("it has ended")
        again.disconnect()
        sandbox.commands.kill(handle.pid)
    held.right(sandbox)


@pytest.mark.timeout(180)
def test_an_upload_is_cut(held: Held, server: Server):
    sandbox = held.sandbox
    content = os.urandom(1 << 20) * 500
    with ThreadPoolExecutor(1) as pool:
        uploading: Future = pool.submit(sandbox.files.write, "/home/user/large", io.BytesIO(content), request_timeout=60)
        until("it has begun", lambda: sandbox.commands.run("du -sm . | cut -f1").stdout.strip() > "1" or uploading.done())
        assert not uploading.done(), "too fast to be cut"
        assert sandbox.pause() is True
        with pytest.raises(Exception):
            uploading.result(60)
    resumed(held)
    sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    assert not sandbox.files.exists("/home/user/large") or sandbox.files.get_info("/home/user/large").size < len(content)
    sandbox.files.write("/home/user/large", io.BytesIO(content), request_timeout=60)
    assert sandbox.commands.run("stat -c %s /home/user/large").stdout == f"{len(content)}\n"


def test_a_second_pause_joins_or_comes_too_late(held: Held):
    for after in MOMENTS:
        assert during_a_pause(held, after, "/pause") in ((204, 204), (204, 409)), after
        resumed(held)


def test_a_resume_waits_for_the_pause(held: Held):
    for after in MOMENTS:
        first, second = during_a_pause(held, after, "/connect", b'{"timeout": 600}')
        # The very first may find it running still.
        assert first == 204 and second in ((200, 201) if after == 0 else (201,)), (after, first, second)
        resumed(held)


def test_a_kill_wins(server: Server):
    before = snapshots(server)
    for after in MOMENTS:
        held = Held(Sandbox.create("base", timeout=600), ("counter", "heap"), HEAP_MIB)
        first, second = during_a_pause(held, after, "", method="DELETE")
        assert second == 204 and first in (204, 404, 409), (after, first, second)
        with pytest.raises(NotFoundException):
            held.sandbox.get_info()
        until("nothing of it is kept", lambda: snapshots(server) <= before)


def test_a_deadline_leaves_it_paused(held: Held):
    """Also one at which it is killed: whoever asked for the pause has an answer that is true."""
    for after in MOMENTS[1:]:
        first, second = during_a_pause(held, after, "/timeout", b'{"timeout": 0}')
        if second == 204:
            # It came first, and a sandbox whose time is over cannot be paused.
            assert first == 404
            return
        assert (first, second) in ((204, 409), (204, 404)), (after, first, second)
        assert held.sandbox.get_info().state == SandboxState.PAUSED
        resumed(held)
    passing = Held(Sandbox.create("base", timeout=600), ("counter", "heap"), HEAP_MIB)
    passing.sandbox.set_timeout(1)
    time.sleep(0.8)
    assert status(passing.sandbox, "/pause") == 204
    time.sleep(1)
    assert passing.sandbox.get_info().state == SandboxState.PAUSED
    resumed(passing)
    passing.sandbox.kill()


def test_forks_and_snapshots_come_before_a_pause_or_not_at_all(held: Held, server: Server):
    """Whichever was first is finished first: a pause waits for a fork, a fork of what is being paused is refused."""
    before = snapshots(server)
    for after in MOMENTS[1:]:
        first, second = during_a_pause(held, after, "/fork", b'{"count": 1}')
        assert (first, second) == (204, 409), (after, first, second)
        resumed(held)
        first, second = during_a_pause(held, after, "/snapshots")
        assert (first, second) == (204, 409), (after, first, second)
        resumed(held)
    for after in MOMENTS[1:]:
        with ThreadPoolExecutor(1) as pool:
            forking = pool.submit(held.sandbox.fork, count=2, timeout=600)
            time.sleep(after)
            assert status(held.sandbox, "/pause") == 204
            forks = forking.result(60)
        for fork in forks:
            held.right(fork)
            fork.kill()
        resumed(held)
    until("nothing of it is kept", lambda: snapshots(server) <= before)
