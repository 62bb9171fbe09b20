"""What isolation costs: idle sandboxes, system calls under the filter, the network namespace, and slots made ahead."""

import os
import re
import statistics
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import peer
from client import create, execute, kill
from lifecycle import burst
from table import Table

AGENT = os.environ.get("BENCH_AGENT")
WARM = int(os.environ.get("BENCH_WARM", "0"))
# The internet of this benchmark: a network namespace behind a pair of interfaces. Addresses for documentation, which nobody has.
WORLD, UPLINK, PEER, PEER_GATEWAY = "198.51.100.1", "198.51.100.2", "203.0.113.22", "203.0.113.21"


def measure(table: Table) -> None:
    each = idle_memory(table.samples(100))
    table.value("idle sandbox, memory of the host", each, "MiB", most=2)
    if AGENT is None:
        for name in ("500 idle, growth of the server, each", "500 idle, CPU of all our processes", "refill of slots"):
            table.missing(name, "no BENCH_AGENT")
    else:
        idle_crowd(table, table.samples(500))
        slots(table)
    if table.root is None:
        table.missing("system calls / runc", "no BENCH_ROOT")
        table.missing("connections / runc", "no BENCH_ROOT")
        return
    system_calls(table, table.samples(20, 5))
    network(table, table.samples(20, 5))


# --- idle sandboxes ------------------------------------------------------------------------------------------


def used_memory() -> float:
    """MiB that are neither free nor cache."""
    with open("/proc/meminfo") as file:
        fields = {line.split(":")[0]: int(line.split()[1]) for line in file}
    return (fields["MemTotal"] - sum(fields[key] for key in ("MemFree", "Buffers", "Cached", "SReclaimable"))) / 1024


def idle_memory(count: int) -> float:
    first = create()
    time.sleep(3)
    before = used_memory()
    more = [create() for _ in range(count)]
    time.sleep(3)
    each = (used_memory() - before) / count
    for sandbox in [first, *more]:
        kill(sandbox)
    return each


def family() -> list[int]:
    """The server's two processes and everything below them: what runs in sandboxes are children of the agent."""
    found, left = [], [int(AGENT)]
    while left:
        pid = left.pop()
        found.append(pid)
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                left += map(int, path.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def server_memory() -> int:
    """KiB of the agent and the front."""

    def resident(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    front = next(pid for pid in family()[1:] if b"front" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2])
    return resident(int(AGENT)) + resident(front)


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def idle_crowd(table: Table, count: int) -> None:
    time.sleep(5)
    before = server_memory()
    crowd = [create(timeout=3600) for _ in range(count)]
    time.sleep(10)  # the stock is whole again and everything at rest
    table.value(f"{count} idle, growth of the server, each", (server_memory() - before) / count, "KiB", most=100)
    pids, seconds = family(), 30
    began = cpu_seconds(pids)
    time.sleep(seconds)
    table.value(f"{count} idle, CPU of all our processes", (cpu_seconds(pids) - began) / seconds * 100, "% of a core", most=2)
    for sandbox in crowd:
        kill(sandbox)


# --- slots made ahead ----------------------------------------------------------------------------------------


def slot_count() -> int:
    """Made ahead or used: the first process of each is a child of the agent, as the front is."""
    return sum(len(path.read_text().split()) for path in Path(f"/proc/{AGENT}/task").glob("*/children")) - 1


def slots(table: Table) -> None:
    """How fast the stock is made again when all of it was taken, and what a burst gets of which a half finds none."""
    rates = []
    for _ in range(table.samples(3)):
        rest()
        full = slot_count()
        taken = [create() for _ in range(WARM)]
        start, have = time.perf_counter(), slot_count() - len(taken)
        while slot_count() < full + len(taken):
            assert time.perf_counter() - start < 60, "slots are not made again"
            time.sleep(0.005)
        rates.append((full - have) / (time.perf_counter() - start))
        for sandbox in taken:
            kill(sandbox)
    table.value("refill of slots", statistics.median(rates), "a second")
    beyond = []
    for _ in range(table.samples(3)):
        rest()
        beyond += burst(2 * WARM)
    table.times(f"create, {2 * WARM} at once, {WARM} made ahead", beyond)


def rest() -> None:
    """Until the number of slots has not changed for a second."""
    deadline, same_since, last = time.monotonic() + 60, time.monotonic(), slot_count()
    while time.monotonic() - same_since < 1:
        assert time.monotonic() < deadline, "the number of slots does not settle"
        time.sleep(0.05)
        if (now := slot_count()) != last:
            same_since, last = time.monotonic(), now


# --- against runc: the filter, the network ---------------------------------------------------------------------

# A million pairs of read and write of a byte: nothing but system calls.
SYSTEM_CALLS = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=1000000")
# Connections, a byte to and fro on each; and bytes over one connection.
CONNECT = r"""
import socket, sys, time
host, port, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
start = time.perf_counter()
for _ in range(count):
    with socket.create_connection((host, port)) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.sendall(b"\0"); assert s.recv(1) == b"\0"
middle = time.perf_counter()
with socket.create_connection((host, port)) as s:
    s.sendall(b"\1")
    left = size
    block = bytes(1 << 18)
    while left > 0:
        s.sendall(block); left -= len(block)
    s.shutdown(socket.SHUT_WR)
    assert s.recv(1) == b"\1"
print("took", middle - start, time.perf_counter() - middle)
"""
SERVE = r"""
import socket, sys, threading
server = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=1024)
print("ready", flush=True)
buffer = bytearray(1 << 20)
while True:
    s, _ = server.accept()
    try:
        first = s.recv(1)
        while first == b"\1" and s.recv_into(buffer): pass
        s.sendall(first)
    except OSError: pass
    s.close()
"""


def system_calls(table: Table, rounds: int) -> None:
    ours, theirs = [], []
    sandbox = create()
    try:
        with peer.bundle(table.root) as bundle:
            # In turns, so that both meet the same machine.
            for _ in range(rounds):
                ours.append(seconds_of_dd(decoded(execute(sandbox, *SYSTEM_CALLS))))
                theirs.append(seconds_of_dd(bundle.output(*SYSTEM_CALLS)))
    finally:
        kill(sandbox)
    table.times("2 million system calls", [took * 1000 for took in ours])
    table.times("peer: 2 million system calls in runc", [took * 1000 for took in theirs])
    table.ratio("system calls / runc", ours, theirs)


def decoded(stream: bytes) -> str:
    """Output out of the frames of the RPC, where it is base64 in JSON."""
    import base64

    parts = re.findall(rb'"(?:stdout|stderr)":"([^"]*)"', stream)
    return b"".join(base64.b64decode(part) for part in parts).decode()


def seconds_of_dd(said: str) -> float:
    return float(re.search(r"copied, ([\d.e-]+) s", said)[1])


def network(table: Table, rounds: int) -> None:
    """Out through the namespace's pair, forwarding and masquerade; the peer has the same in its plainest form."""
    rows = {"connections": ([], []), "bytes": ([], [])}
    arguments = ("/usr/bin/python3", "-c", CONNECT, WORLD, "7000", "300", str(256 << 20))
    sandbox = create()
    try:
        with world() as peer_namespace, peer.bundle(table.root) as bundle:
            for _ in range(rounds):
                said = (decoded(execute(sandbox, *arguments)), bundle.output(*arguments, network_namespace=peer_namespace))
                for side, text in enumerate(said):
                    took = re.search(r"took ([\d.e-]+) ([\d.e-]+)", text)
                    assert took, text
                    for row, value in zip(rows.values(), took.groups()):
                        row[side].append(float(value) * 1000)
    finally:
        kill(sandbox)
    for name, what in (("connections", "300 connections outside"), ("bytes", "256 MiB to the outside")):
        ours, theirs = rows[name]
        table.times(what, ours)
        table.times(f"peer: {what}, in runc", theirs)
        table.ratio(f"{name} / runc", ours, theirs)


@contextmanager
def world():
    """A namespace that answers, one for the peer with a masqueraded way to it, and nothing left of either afterwards."""
    run = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True)
    ip = lambda line: run("ip", *line.split())
    holders = []

    def namespace(name: str) -> int:
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 3600"], stdout=subprocess.PIPE)
        holders.append(holder)
        holder.stdout.readline()
        ip(f"link add {name} type veth peer name eth0 netns {holder.pid}")
        return holder.pid

    try:
        outside, inside = namespace("benchworld"), namespace("benchpeer")
        for name, pid, ours, theirs in (("benchworld", outside, UPLINK, WORLD), ("benchpeer", inside, PEER_GATEWAY, PEER)):
            ip(f"address add {ours}/30 dev {name}")
            ip(f"link set {name} up")
            for line in ("link set lo up", f"address add {theirs}/30 dev eth0", "link set eth0 up"):
                run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", *line.split())
        run("nsenter", f"--net=/proc/{inside}/ns/net", "ip", "route", "add", "default", "via", PEER_GATEWAY)
        run("nft", f"add table ip soulbox_bench; add chain ip soulbox_bench hide {{ type nat hook postrouting priority srcnat; }}; "
            f"add rule ip soulbox_bench hide ip saddr {PEER} oifname benchworld masquerade")  # fmt: skip
        serving = subprocess.Popen(
            ["nsenter", f"--net=/proc/{outside}/ns/net", "python3", "-c", SERVE, "7000"], stdout=subprocess.PIPE
        )
        holders.append(serving)
        assert serving.stdout.readline() == b"ready\n"
        yield f"/proc/{inside}/ns/net"
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(10)
        subprocess.run(["nft", "delete", "table", "ip", "soulbox_bench"], capture_output=True)
        for name in ("benchworld", "benchpeer"):
            subprocess.run(["ip", "link", "delete", name], capture_output=True)
