"""Create and kill."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import peer
from client import create, execute, kill, warm_connection
from table import Table, timed

# Slots are made ready again.
REFILL = 3


def creates(count: int, pause: float) -> tuple[list[float], list[float]]:
    created, killed = [], []
    for _ in range(count):
        took, sandbox = timed(create)
        created.append(took)
        killed.append(timed(kill, sandbox)[0])
        time.sleep(pause)
    return created, killed


def burst(count: int) -> list[float]:
    """That many creates at once, each timed from the common start to its answer; all of them can be used."""
    barrier = threading.Barrier(count)

    def one(_) -> tuple[float, dict]:
        warm_connection()
        barrier.wait()
        return timed(create)

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(one, range(count)))
        for _, sandbox in results:
            execute(sandbox)
        list(pool.map(lambda result: kill(result[1]), results))
    return [took for took, _ in results]


def bursts(count: int, rounds: int) -> list[float]:
    time.sleep(REFILL)
    return [took for _ in range(rounds) for took in (time.sleep(REFILL), burst(count))[1]]


def python_sdk(count: int) -> list[float]:
    from e2b import Sandbox

    def first_command() -> Sandbox:
        sandbox = Sandbox.create("base", timeout=120)
        sandbox.commands.run("true")
        return sandbox

    times = []
    for _ in range(count):
        took, sandbox = timed(first_command)
        times.append(took)
        sandbox.kill()
    return times


def measure(table: Table) -> None:
    creates(20, 0)  # the first ones warm caches of both sides
    back_to_back, killed = creates(table.samples(300), 0)
    table.times("create, one at a time, back to back", back_to_back, p50=3, p99=10)
    paused, _ = creates(table.samples(100), 0.1)
    table.times("create, one at a time, 100 ms between", paused, p50=3, p99=10)
    table.times("kill, to 204", killed, p50=3)
    table.times("create, 20 at once", bursts(20, table.samples(5)))
    table.times("create, 50 at once", bursts(50, table.samples(5)), p95=60)
    table.times("create to first command, Python SDK", python_sdk(table.samples(100)), p50=14)
    if table.root is None:
        table.missing("create / runc run", "no BENCH_ROOT")
        return
    run = peer.run_true(table.root, table.samples(30, 10))
    table.times("peer: runc run true", run)
    table.ratio("create / runc run", back_to_back, run, most=0.15)
