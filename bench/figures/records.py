"""API, control and records with more sandboxes than one machine holds: `soulbox-bench`, whose hosts answer at once, on SQLite and on
PostgreSQL with durable commits. Needs BENCH_RECORDS, the path of that program; it is its own server and its own load."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from profiling import Profile
from table import Table, at

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from postgres import Cluster  # noqa: E402

CLIENTS = 20
MANY = 10_000


def measure(table: Table) -> None:
    program = os.environ.get("BENCH_RECORDS")
    if not program:
        table.missing("records", "BENCH_RECORDS names no program")
        return
    with tempfile.TemporaryDirectory(prefix="soulbox-bench-") as folder:
        databases = iter(range(99))
        of_store(table, program, "SQLite", lambda: ["--sqlite", f"{folder}/{next(databases)}.db"])
    cluster = Cluster(durable=True)
    try:
        cluster.start()
        of_store(table, program, "PostgreSQL", lambda: ["--postgres", cluster.database()])
    finally:
        cluster.end()


def of_store(table: Table, program: str, name: str, records) -> None:
    def ask(*arguments: object) -> dict:
        done = subprocess.run([program, *map(str, arguments)], stdout=subprocess.PIPE, timeout=900, check=True)
        return json.loads(done.stdout)

    with served(program, records()) as (address, pid):
        times = ask("single", address, table.samples(2000, 100))
        table.times(f"{name}: create, hosts at once", times["create"])
        table.times(f"{name}: kill, hosts at once", times["kill"])
        both = f"{name}: create and kill, c={CLIENTS}"
        rate(table, both, ask("rate", address, CLIENTS, table.samples(10, 3)))
        with Profile(table, both, [pid]):
            ask("rate", address, CLIENTS, table.samples(10, 3))
        ask("fill", address, 1000)
        pages(table, f"{name}: page of a list, 1,000 records", ask("pages", address, table.samples(300, 50)), p50=5)
        chosen = ask("pages", address, table.samples(300, 50), "--query", "metadata=of%3Dthe%2520bench&state=running&order=asc")
        pages(table, f"{name}: the same, chosen by metadata", chosen, p50=5)
        rate(table, f"{name}: create and kill, 1,000 records", ask("rate", address, CLIENTS, table.samples(10, 3)))

    with served(program, records()) as (address, pid):
        ask("single", address, 50)
        before, many = memory(pid), table.samples(MANY)
        # All of them are there before the first one ends.
        ending, over = 30 + many // 100, 30
        took = ask("fill", address, many, "--ending", ending, "--over", over)["seconds"]
        label = f"{many:,}"
        grown = memory(pid) - before
        table.value(f"{name}: memory of the front, {label} records", memory(pid) / 1024, "MiB")
        table.value(f"{name}: memory of one record", grown / many, "KiB")
        pages(table, f"{name}: page of a list, {label} records", ask("pages", address, table.samples(100, 20)))
        expiries(table, f"{name}: {label} expiries, late by", address, many, ending + over - took)


def rate(table: Table, name: str, said: dict) -> None:
    table.value(name, said["pairs"] / said["seconds"], "a second")


def pages(table: Table, name: str, said: dict, p50: float | None = None) -> None:
    assert said["length"] == 100, said["length"]
    table.times(name, said["page"], p50=p50)


def expiries(table: Table, name: str, address: str, many: int, within: float) -> None:
    """From each deadline to the kill that its host hears; nobody else kills here."""
    deadline = time.monotonic() + within + 60
    while True:
        with urllib.request.urlopen(f"http://{address}/bench/ended", timeout=30) as answer:
            said = json.load(answer)
        if said["live"] == 0:
            break
        assert time.monotonic() < deadline, f"{said['live']} sandboxes did not expire"
        time.sleep(1)
    assert len(said["late"]) == many, (len(said["late"]), many)
    table.times(name, said["late"], p99=100)
    table.value(f"{name}, the last", at(said["late"], 100), "ms", most=100)


def memory(pid: int) -> int:
    """KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextmanager
def served(program: str, records: list[str]):
    """Address and pid of a server that ends with the block."""
    server = subprocess.Popen([program, "serve", *records], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        assert address, "soulbox-bench said no address"
        yield address, server.pid
    finally:
        server.stdin.close()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
