"""Paused sandboxes over crashes and restarts, and their place in the quota; one server with a small quota for all."""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import Server, until
from e2b import RateLimitException, Sandbox, SandboxState
from footprint import criu

LIMIT = 3
COUNT = "i=0; while :; do i=$((i + 1)); echo $i > /home/user/count; sleep 0.05; done"


@pytest.fixture(scope="module")
def server():
    made = Server()
    try:
        yield made.start("--max-sandboxes", str(LIMIT))
    finally:
        made.end()


@pytest.fixture
def create(server):
    made = []

    def make(**options) -> Sandbox:
        made.append(Sandbox.create(**({"timeout": 120} | options)))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


def counting(sandbox: Sandbox) -> int:
    pid = sandbox.commands.run(COUNT, background=True, timeout=0).pid
    until("it counts", lambda: sandbox.files.exists("/home/user/count"))
    return pid


def count(sandbox: Sandbox) -> int:
    # The file is empty for the moment in which it is written.
    until("there is a number", lambda: sandbox.files.read("/home/user/count").strip())
    return int(sandbox.files.read("/home/user/count") or 0)


def pause_anyhow(sandbox: Sandbox) -> None:
    try:
        sandbox.pause()
    except Exception:
        pass  # The server is killed meanwhile, so that any answer will do.


def test_cp_159_a_kill_of_everything_of_ours_loses_no_pause(server, create):
    paused, running = create(), create()
    pid = counting(paused)
    before = count(paused)
    paused.pause()
    server.kill()
    server.start("--max-sandboxes", str(LIMIT))
    assert paused.get_info().state == SandboxState.PAUSED
    assert running.get_info().state == SandboxState.RUNNING
    again = Sandbox.connect(paused.sandbox_id, timeout=120)
    assert any(process.pid == pid for process in again.commands.list())
    until("it counts on", lambda: count(again) > before)
    running.kill()


def test_a_kill_in_the_middle_of_pauses_leaves_each_running_or_paused(server, create):
    for patience in (0.02, 0.1, 0.3):
        sandbox = create()
        counting(sandbox)
        before = count(sandbox)

        asking = threading.Thread(target=pause_anyhow, args=(sandbox,))
        asking.start()
        time.sleep(patience)
        server.kill()
        asking.join(90)
        server.start("--max-sandboxes", str(LIMIT))
        until("it can be reached", lambda: count(Sandbox.connect(sandbox.sandbox_id, timeout=120)) >= before, 90)
        sandbox.kill()


def test_what_a_killed_agent_left_to_criu_stays_until_criu_is_done(server, create):
    sandbox = create()
    counting(sandbox)
    # Enough to write that there is time to see CRIU at it.
    program = "import time; held = b'x' * (300 << 20); open('/home/user/held', 'w'); time.sleep(600)"
    sandbox.commands.run(f'python3 -c "{program}"', background=True, timeout=0)
    until("it has its memory", lambda: sandbox.files.exists("/home/user/held"))
    for _ in range(10):
        asking = threading.Thread(target=pause_anyhow, args=(sandbox,))
        asking.start()
        seen = None
        while asking.is_alive() and seen is None:
            seen = criu(server)
        if seen:
            break
        # The pause was over before it was looked for on a busy machine.
        Sandbox.connect(sandbox.sandbox_id, timeout=120)
    os.kill(seen, signal.SIGSTOP)
    try:
        server.kill()
        asking.join(90)
        # Not what an earlier pause of the loop has made, which goes when its resume is written down.
        snapshots = [path for path in (server.data / "pool/snapshots").iterdir() if sandbox.sandbox_id in path.name]
        drafts = [path for path in snapshots if not (path / "manifest").exists()]
        assert drafts
        server.start("--max-sandboxes", str(LIMIT))
        assert all(path.exists() for path in drafts)
    finally:
        os.kill(seen, signal.SIGCONT)
    until("it goes on", lambda: count(Sandbox.connect(sandbox.sandbox_id, timeout=120)) > 0, 90)
    until("the half snapshot is gone", lambda: not any(path.exists() for path in drafts), 60)


def test_cp_045_a_paused_one_counts_for_nothing(create):
    made = [create() for _ in range(LIMIT)]
    with pytest.raises(RateLimitException):
        Sandbox.create(retries=0)
    made[0].pause()
    create()
    with pytest.raises(RateLimitException):
        Sandbox.connect(made[0].sandbox_id)
    assert made[0].get_info().state == SandboxState.PAUSED
    made[1].kill()
    assert Sandbox.connect(made[0].sandbox_id).files.exists("/etc/hostname")


def test_cp_112_a_full_quota_is_told_to_traffic(server, create):
    sandbox = create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.pause()
    for _ in range(LIMIT):
        create()
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 429 and b"limit of 3" in refused.value.read()
    assert sandbox.get_info().state == SandboxState.PAUSED


def daemon_and_init(sandbox: Sandbox) -> tuple[int, int]:
    """The host's pids of both."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text() == "envd\n" and (process / "root/run/e2b/.E2B_SANDBOX_ID").read_text() == sandbox.sandbox_id:
                status = (process / "status").read_text()
                return int(process.name), int(status.split("PPid:")[1].split()[0])
        except OSError:
            continue
    raise AssertionError("no daemon of this sandbox")


def ask(method: str, path: str, body: dict | None = None) -> tuple[int, dict | list | None]:
    request = urllib.request.Request(
        os.environ["E2B_API_URL"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_daemon_that_does_not_answer(create):
    """`requireHealthyGuest` refuses the pause; without it the pause is marked, and resumes only by a boot."""
    sandbox = create()
    sandbox.files.write("/home/user/kept", "kept")
    daemon, init = daemon_and_init(sandbox)
    # Init would let the daemon go on, so it is stopped first.
    for pid in (init, daemon):
        os.kill(pid, signal.SIGSTOP)
    path = f"/sandboxes/{sandbox.sandbox_id}"
    status, said = ask("POST", f"{path}/pause", {"requireHealthyGuest": True})
    assert status == 503 and said["error_code"] == "sandbox_guest_unresponsive", said
    shown = ask("GET", path)[1]
    assert shown["state"] == "running" and "envdUnresponsiveAtPause" not in shown
    assert ask("POST", f"{path}/pause", {})[0] == 204
    assert ask("GET", path)[1]["envdUnresponsiveAtPause"] is True
    listed = ask("GET", "/v2/sandboxes?state=paused")[1]
    assert [it["envdUnresponsiveAtPause"] for it in listed if it["sandboxID"] == sandbox.sandbox_id] == [True]
    for call in ("connect", "resume"):
        status, said = ask("POST", f"{path}/{call}", {"timeout": 60})
        assert status == 409 and said["error_code"] == "sandbox_snapshot_guest_agent_unresponsive", said
    assert ask("POST", f"/v2{path}/connect", {"memory": False})[0] == 201
    shown = ask("GET", path)[1]
    assert shown["state"] == "running" and "envdUnresponsiveAtPause" not in shown
    assert Sandbox.connect(sandbox.sandbox_id).files.read("/home/user/kept") == "kept"


def test_envd_161_forks_are_sandboxes_or_errors_of_their_kind(create):
    sandbox = create()
    forks = sandbox.fork(count=LIMIT - 1, timeout=60)
    try:
        assert [type(fork) for fork in forks] == [Sandbox] * (LIMIT - 1), forks
        full = sandbox.fork(timeout=60)
        assert [type(fork) for fork in full] == [RateLimitException], full
        forks[0].kill()
        mixed = sandbox.fork(count=2, timeout=60)
        forks += [fork for fork in mixed if isinstance(fork, Sandbox)]
        assert sorted(type(fork).__name__ for fork in mixed) == ["RateLimitException", "Sandbox"], mixed
    finally:
        for fork in forks:
            fork.kill()


def test_cp_084_a_fork_beyond_the_quota_is_an_error_of_its_own(create):
    sandbox = create()
    create()
    forks = sandbox.fork(count=2, timeout=60)
    made = [fork for fork in forks if isinstance(fork, Sandbox)]
    assert len(made) == 1 and len(forks) == 2
    assert made[0].commands.run("echo fork").stdout == "fork\n"
    made[0].kill()
