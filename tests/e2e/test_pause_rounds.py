"""A sandbox that is paused and resumed again and again: SOULBOX_PAUSE_ROUNDS times (10; `make soak` takes 50)."""

import os
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Server, until
from e2b import Sandbox
from footprint import Footprint, Objects
from held import Held

ROUNDS = int(os.environ.get("SOULBOX_PAUSE_ROUNDS", "10"))
# Rounds until caches, pools of threads and the tree of the file system have their size.
SETTLING = 3
AHEAD = 3


def used_mib(server: Server) -> int:
    """What the pool and the images beside it take of the disk when all that was deleted is gone."""
    pool = server.data / "pool"
    until("deleted subvolumes are gone", lambda: Footprint.of(server).deleted_uppers == 0, 30)
    subprocess.run(["btrfs", "filesystem", "sync", str(pool)], check=True, capture_output=True)
    found = os.statvfs(pool)
    images = sum(path.stat().st_blocks * 512 for path in (server.data / "memory").rglob("*"))
    return (found.f_blocks - found.f_bfree) * found.f_bsize + images >> 20


def descriptors_inside(server: Server, sandbox: Sandbox) -> int:
    """Descriptors of all processes of the sandbox."""
    found = Objects.of(server.data)
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in found.pids[found.records[sandbox.sandbox_id]])


@pytest.mark.timeout(90 + 6 * ROUNDS)
def test_rounds_keep_everything_and_cost_the_same(server: Server):
    server.stop()
    server.start("--warm", str(AHEAD - 1), "--parked", "1")
    sandbox = Sandbox.create("base", timeout=1200)
    held = Held(sandbox, ("counter", "heap", "files", "loopback", "shared", "inotify"))
    sandbox.commands.run("mkdir kept && cd kept && for i in $(seq 50); do head -c 200k /dev/urandom > $i; done && sha256sum * > ../sums")
    pauses, resumes, measured = [], [], []

    last: list[str] = []

    def settled() -> bool:
        last[:] = Objects.of(server.data).differences(AHEAD, {sandbox.sandbox_id})
        last.extend(path.name for path in (server.data / "pool/snapshots").glob("pause-*"))
        return not last

    def after_a_while(what: str, condition, within: float) -> None:
        try:
            until("", condition, within)
        except AssertionError:
            raise AssertionError(f"{what}: {last}") from None

    for number in range(ROUNDS):
        began = time.monotonic()
        assert sandbox.pause() is True
        paused = time.monotonic()
        sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=1200)
        pauses.append(paused - began)
        resumes.append(time.monotonic() - paused)
        held.right(sandbox)
        assert sandbox.commands.run("cd kept && sha256sum --check --quiet ../sums").stdout == ""
        # As much is written as is deleted.
        sandbox.commands.run(f"head -c 5M /dev/urandom > round-{number}; rm -f round-{number - 1}")
        if number in (SETTLING - 1, ROUNDS - 1):
            after_a_while("left over", settled, 20)
            measured.append((Footprint.of(server), used_mib(server), descriptors_inside(server, sandbox)))
    (before, disk_before, inside_before), (_, disk_after, inside_after) = measured[0], measured[-1]
    print(f"\npauses {' '.join(f'{it:.2f}' for it in pauses)}\nresumes {' '.join(f'{it:.2f}' for it in resumes)}")
    print(f"disk {disk_before} -> {disk_after} MiB, descriptors inside {inside_before} -> {inside_after}\n{before}\n{measured[-1][0]}")
    assert inside_after <= inside_before
    assert disk_after <= disk_before + 16, "the disk fills"

    def as_before() -> bool:
        # A thread left by each round would be many more than two.
        last[:] = Footprint.of(server).grown(before, idle_threads=2)
        return not last

    after_a_while("grown", as_before, 30)
    for name, took in (("pauses", pauses), ("resumes", resumes)):
        early, late = statistics.median(took[:SETTLING]), statistics.median(took[-SETTLING:])
        assert late < 2 * early + 0.3, f"{name} take longer and longer: {took}"
    sandbox.kill()
