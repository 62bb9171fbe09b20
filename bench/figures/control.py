"""The API with many sandboxes, and with many clients: how long a page takes, how many sandboxes a second come and go."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from client import API, KEY, call, create, kill, warm_connection
from profiling import Profile
from table import Table, timed

CLIENTS = 20


def measure(table: Table) -> None:
    pages(table)
    rate(table)


def pages(table: Table) -> None:
    """One page of the list while many sandboxes run; less than 1,000 when the machine has not the room, and the row says how many."""
    made: list[dict] = []
    with ThreadPoolExecutor(8) as pool:
        try:
            made.extend(pool.map(lambda _: create(timeout=1800), range(table.samples(990, 50))))
            times = []
            for _ in range(table.samples(200, 20)):
                took, (status, body) = timed(call, API, "GET", "/v2/sandboxes?limit=100", None, KEY)
                assert status == 200 and len(json.loads(body)) == min(100, len(made))
                times.append(took)
            table.times(f"page of a list, {len(made)} sandboxes", times, p50=5)
        finally:
            list(pool.map(kill, made))


def rate(table: Table) -> None:
    name = f"create and kill, c={CLIENTS}"
    table.value(name, pairs_a_second(table.samples(20, 3)), "a second", least=80)
    agent, front = processes()
    with Profile(table, f"{name}, agent", agent), Profile(table, f"{name}, front", front):
        pairs_a_second(table.samples(10, 3))


def pairs_a_second(seconds: float) -> float:
    """Creates and kills by clients that do nothing else."""
    end = time.monotonic() + seconds
    barrier = threading.Barrier(CLIENTS)

    def one(_) -> int:
        warm_connection()
        barrier.wait()
        count = 0
        while time.monotonic() < end:
            kill(create())
            count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        began = time.monotonic()
        counts = sum(pool.map(one, range(CLIENTS)))
        return counts / (time.monotonic() - began)


def processes() -> tuple[list[int], list[int]]:
    """The server's two processes; none when nobody says which is the agent."""
    agent = os.environ.get("BENCH_AGENT")
    if agent is None:
        return [], []
    children = Path(f"/proc/{agent}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return [int(agent)], [pid for pid in pids if is_front(pid)]


def is_front(pid: int) -> bool:
    try:
        return b"\0front\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
