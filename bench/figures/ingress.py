"""The proxy to ports of sandboxes: how many requests, and how much later they are answered than inside. wrk is the load, envd's
/health the server; direct is the same wrk in the network namespace of the sandbox."""

import os
import re
import subprocess
import time
from pathlib import Path

from client import INGRESS, create, execute, kill, to_port
from table import Table

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def measure(table: Table) -> None:
    if subprocess.run(["which", "wrk"], capture_output=True).returncode:
        table.missing("port proxy", "no wrk (scripts/setup.sh bench)")
        return
    sandbox = create()
    try:
        headers = to_port(sandbox, 49983)
        proxied, direct = INGRESS.geturl() + "/health", "http://127.0.0.1:49983/health"
        inside = ("nsenter", f"--net=/proc/{inside_pid(sandbox)}/ns/net")
        seconds = table.samples(5)
        rounds = [(wrk(seconds, 1, proxied, headers), wrk(seconds, 1, direct, {}, inside)) for _ in range(3)]
        added = sorted(through[1] - straight[1] for through, straight in rounds)
        table.value("port proxy, added p50 latency, c=1", added[1], "ms", most=0.3)
        rates = sorted(wrk(seconds, 64, proxied, headers)[0] for _ in range(3))
        table.value("port proxy, c=64", rates[1], "requests/s", least=20_000)
        table.value("peer: direct, c=64", wrk(seconds, 64, direct, {}, inside)[0], "requests/s")
    finally:
        kill(sandbox)


def inside_pid(sandbox: dict) -> int:
    """The host's number of a process in the sandbox, known by an argument that no other has."""
    mark = f"86400.{os.getpid()}"
    execute(sandbox, "/bin/bash", "-c", f"nohup sleep {mark} > /dev/null 2>&1 &")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes() == f"sleep\0{mark}\0".encode():
                    return int(path.parent.name)
            except OSError:
                continue
    raise RuntimeError("the process in the sandbox was not found")


def wrk(seconds: int, connections: int, url: str, headers: dict[str, str], within: tuple[str, ...] = ()) -> tuple[float, float]:
    """Requests a second, and the median latency in milliseconds."""
    flags = [flag for name, value in headers.items() for flag in ("-H", f"{name}: {value}")]
    threads = str(min(2, connections))
    command = [*within, "wrk", "-t", threads, "-c", str(connections), "-d", str(max(2, seconds)), "--latency", *flags, url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"requests failed:\n{said}")
    rate = float(re.search(r"Requests/sec:\s+([0-9.]+)", said).group(1))
    value, unit = re.search(r"50%\s+([0-9.]+)(us|ms|s)", said).groups()
    return rate, float(value) * UNITS[unit]
