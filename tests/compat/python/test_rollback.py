"""Rollback to a snapshot of the same sandbox, which no official package has a word for: the call is plain HTTP, all else is the package's."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import api, through_ingress
from e2b import Sandbox, SandboxException, SandboxNotFoundException
from test_pause import count, counting, detail, post

BINARY = os.environ.get("SOULBOX_BINARY", "target/ci/soulbox")


def rollback(sandbox: Sandbox, snapshot: str):
    return post(f"/sandboxes/{sandbox.sandbox_id}/rollback", {"snapshotID": snapshot})


def soulbox(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_a_sandbox_is_as_it_was(own):
    """Files, processes and memory go back; the ID, the tokens and the deadline stay."""
    sandbox = own(envs={"COLOUR": "green"})
    pid = counting(sandbox)
    sandbox.files.write("/home/user/file", "before")
    snapshot = sandbox.create_snapshot().snapshot_id
    then = count(sandbox.sandbox_id)
    sandbox.files.write("/home/user/file", "after")
    sandbox.commands.run("rm -rf /home/user/.bashrc; touch /home/user/more")
    late = sandbox.commands.run("sleep 300", background=True, timeout=0)
    sandbox.commands.kill(pid)
    before = detail(sandbox.sandbox_id)

    answer = rollback(sandbox, snapshot)
    assert answer.status == 204, answer.text
    # Usable at once, with the object that was there before.
    assert sandbox.files.read("/home/user/file") == "before"
    assert sandbox.files.exists("/home/user/.bashrc") and not sandbox.files.exists("/home/user/more")
    pids = [process.pid for process in sandbox.commands.list()]
    assert pid in pids, "what was killed goes on"
    assert 0 < count(sandbox.sandbox_id) < then + 3000
    assert sandbox.commands.run("echo $COLOUR $E2B_SANDBOX_ID").stdout == f"green {sandbox.sandbox_id}\n"
    assert detail(sandbox.sandbox_id) == before, "nothing else of it changes"
    began = time.monotonic()
    with pytest.raises(SandboxException):
        late.wait()
    assert time.monotonic() - began < 20, "streams of what was undone end"
    # Once more to the same one, and a pause and a kill as ever.
    sandbox.files.write("/home/user/file", "again")
    assert rollback(sandbox, snapshot).status == 204
    assert sandbox.files.read("/home/user/file") == "before"
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id)
    assert sandbox.files.read("/home/user/file") == "before"


def test_with_files_only_it_boots(own):
    sandbox = own()
    sandbox.files.write("/home/user/file", "before")
    made = json.loads(post(f"/sandboxes/{sandbox.sandbox_id}/snapshots", {"memory": False}).body)
    boot = sandbox.commands.run("cat /proc/sys/kernel/random/boot_id; ps -o lstart= -p 1").stdout
    sandbox.files.write("/home/user/file", "after")
    program = sandbox.commands.run("sleep 300", background=True, timeout=0)
    assert rollback(sandbox, made["snapshotID"]).status == 204
    assert sandbox.files.read("/home/user/file") == "before"
    assert program.pid not in [process.pid for process in sandbox.commands.list()]
    assert boot and sandbox.commands.run("whoami").stdout == "user\n"


def test_what_cannot_be_is_refused_and_it_goes_on(own):
    sandbox, other = own(), own()
    pid = counting(sandbox)
    foreign = other.create_snapshot().snapshot_id
    answer = rollback(sandbox, foreign)
    assert answer.status == 400 and "is not one of sandbox" in answer.text
    for unknown in ("never-made", "base", f"{foreign.split(':')[0]}:v9"):
        assert rollback(sandbox, unknown).status == 404
    for bad in ({}, {"snapshotID": ""}, {"snapshotID": 7}):
        assert post(f"/sandboxes/{sandbox.sandbox_id}/rollback", bad).status == 400
    assert post("/sandboxes/iaaaaaaaaaaaaaaaaaaaa/rollback", {"snapshotID": foreign}).status == 404
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/rollback", b"{}", **{"X-API-Key": ""}).status == 401
    assert any(process.pid == pid for process in sandbox.commands.list())
    other.pause()
    assert rollback(other, foreign).status == 409
    other.kill()
    assert rollback(other, foreign).status == 404


def test_rollbacks_kills_and_pauses_at_once(own):
    """One documented winner: one rollback at a time, a pause waits for it, a kill beats it."""
    sandbox = own()
    counting(sandbox)
    snapshot = sandbox.create_snapshot().snapshot_id
    with ThreadPoolExecutor(3) as pool:
        statuses = sorted(answer.status for answer in pool.map(lambda _: rollback(sandbox, snapshot), range(3)))
    assert set(statuses) <= {204, 409} and 204 in statuses
    assert count(sandbox.sandbox_id) >= 0
    with ThreadPoolExecutor(2) as pool:
        back = pool.submit(rollback, sandbox, snapshot)
        time.sleep(0.02)
        paused = pool.submit(post, f"/sandboxes/{sandbox.sandbox_id}/pause")
        assert paused.result().status == 204 and back.result().status in (204, 409)
    Sandbox.connect(sandbox.sandbox_id)
    with ThreadPoolExecutor(2) as pool:
        back = pool.submit(rollback, sandbox, snapshot)
        time.sleep(0.02)
        assert pool.submit(api, "DELETE", f"/sandboxes/{sandbox.sandbox_id}").result().status == 204
        assert back.result().status in (204, 404, 409)
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
    assert through_ingress(sandbox.sandbox_id, 8000).status == 502


def test_the_command_line_undoes(own):
    sandbox = own()
    none = soulbox("sandbox", "undo", sandbox.sandbox_id)
    assert none.returncode == 1 and "has no snapshot" in none.stderr and "hint: " in none.stderr
    first = sandbox.create_snapshot().snapshot_id
    sandbox.files.write("/home/user/file", "one")
    sandbox.create_snapshot()
    sandbox.files.write("/home/user/file", "two")
    done = soulbox("sandbox", "undo", sandbox.sandbox_id)
    assert done.returncode == 0, done.stderr
    assert sandbox.files.read("/home/user/file") == "one"
    done = soulbox("sandbox", "rollback", sandbox.sandbox_id, first)
    assert done.returncode == 0, done.stderr
    assert not sandbox.files.exists("/home/user/file")
    bad = soulbox("sandbox", "rollback", sandbox.sandbox_id, "never-made")
    assert bad.returncode == 1 and "snapshot 'never-made' not found" in bad.stderr
    assert soulbox("sandbox", "undo", "inothing").returncode == 1
    assert soulbox("sandbox", "undo").returncode == 2
