"""Many sandboxes at once (100; `make soak` takes 500 by SOULBOX_MANY): all of them work, and what they cost is printed."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Server, until
from e2b import Sandbox
from footprint import Objects, Process

MANY = int(os.environ.get("SOULBOX_MANY", "100"))
CALLERS = 50


def timed(work):
    started = time.monotonic()
    result = work()
    return result, time.monotonic() - started


def cpu_seconds(*pids: int) -> float:
    """Processor time of processes so far."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(120 + MANY)
def test_many_at_once():
    server = Server()
    try:
        server.start("--warm", "4", "--parked", "2")
        until("slots made ahead", lambda: not Objects.of(server.data).differences(6, set()), 20)
        agent, front = server.process.pid, server.front()
        before = Process.of(agent), Process.of(front)
        with ThreadPoolExecutor(CALLERS) as pool:
            started = time.monotonic()
            created = list(pool.map(lambda _: timed(lambda: Sandbox.create("base", timeout=900)), range(MANY)))
            all_took = time.monotonic() - started
            sandboxes = [sandbox for sandbox, _ in created]
            ran = list(pool.map(lambda one: timed(lambda: one.commands.run("hostname")), sandboxes))
            assert all(result.stdout == "e2b.local\n" for result, _ in ran)
            ids = {sandbox.sandbox_id for sandbox in sandboxes}
            assert len(ids) == MANY
            until("kernel objects are those of the sandboxes", lambda: not Objects.of(server.data).differences(6, ids), 30)
            during = Process.of(agent), Process.of(front)
            everyone = [agent, front, *set().union(*Objects.of(server.data).pids.values())]
            used = cpu_seconds(*everyone)
            time.sleep(5)
            idle = (cpu_seconds(*everyone) - used) / 5
            started = time.monotonic()
            ended = list(pool.map(lambda one: timed(one.kill), sandboxes))
            kills_took = time.monotonic() - started
        assert all(result is True for result, _ in ended)
        until("all is given back", lambda: not Objects.of(server.data).differences(6, set()), 30)

        def spread(results) -> str:
            times = sorted(1000 * took for _, took in results)
            return f"p50 {statistics.median(times):.0f} ms, p95 {times[int(len(times) * 0.95)]:.0f} ms, most {times[-1]:.0f} ms"

        print(f"\n{MANY} sandboxes by {CALLERS} callers")
        print(f"create: {spread(created)}; all in {all_took:.1f} s")
        print(f"first command: {spread(ran)}")
        print(f"kill: {spread(ended)}; all in {kills_took:.1f} s")
        for name, then, now in zip(("agent", "front"), before, during, strict=True):
            grown = (now.memory_kib - then.memory_kib) / MANY
            print(f"{name}: {grown:.0f} KiB and {(now.descriptors - then.descriptors) / MANY:.1f} descriptors a sandbox")
        print(f"idle: {100 * idle:.1f}% of a core for all {len(everyone)} processes")
    finally:
        server.end()
