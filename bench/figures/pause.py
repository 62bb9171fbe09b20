"""Pause, resume, fork, snapshots and seals of a Python process with a heap of random bytes; budgets are for 60 MiB and 1 GiB.

The heap answers for itself after each resume, so that a time is one to a right answer. "frozen" is the longest time in which a thread
of the sandbox did not run while a snapshot was made beside it; "CRIU" is what CRIU's own statistics say of a pause.
"""

import json
import os
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from client import INGRESS, ask, call, create, execute, kill, to_port, warm_connection
from table import Table, timed

HEAPS = (20, 60, 100, 1024)
PORT = 8000
ROUNDS = 10
FORKS = 20
HOLDER = """
import http.server, os, sys, threading, time
heap = bytearray(os.urandom(int(sys.argv[1]) << 20))
gap = 0
def tick():
    global gap
    last = time.monotonic()
    while True:
        time.sleep(0.002)
        now = time.monotonic()
        gap, last = max(gap, now - last), now
threading.Thread(target=tick, daemon=True).start()
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global gap
        if self.path == "/touch":
            heap[:1 << 20] = os.urandom(1 << 20)
        body = f"{len(heap)} {heap[:8].hex()} {gap}".encode()
        gap = 0
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[2])), Answer).serve_forever()
"""


def holder(heap: int) -> dict:
    """A sandbox with such a heap."""
    sandbox = create(memoryMB=heap * 2 + 512, timeout=3600)
    script = "setsid python3 -c \"$1\" \"$2\" \"$3\" > /dev/null 2>&1 &"
    execute(sandbox, "/bin/sh", "-c", script, "sh", HOLDER, str(heap), str(PORT))
    deadline = time.monotonic() + 60
    while look(sandbox) is None:
        assert time.monotonic() < deadline, "the heap is not there within a minute"
        time.sleep(0.1)
    return sandbox


def look(sandbox: dict, path: str = "/") -> list[str] | None:
    """Length and begin of the heap, and the longest gap since it was asked last."""
    status, body = call(INGRESS, "GET", path, None, to_port(sandbox, PORT))
    return body.decode().split() if status == 200 else None


def answering(sandbox: dict, expected: list[str]) -> dict:
    seen = look(sandbox)
    assert seen and seen[:2] == expected[:2], (seen, expected)
    return sandbox


def pause(sandbox: dict) -> None:
    ask("POST", f"/sandboxes/{sandbox['sandboxID']}/pause", 204)


def resume(sandbox: dict, expected: list[str]) -> dict:
    made = ask("POST", f"/sandboxes/{sandbox['sandboxID']}/connect", 201, {"timeout": 3600})
    return answering(made, expected)


def fork(sandbox: dict, count: int, expected: list[str]) -> list[dict]:
    """That many, all of them answering."""
    results = ask("POST", f"/sandboxes/{sandbox['sandboxID']}/fork", 201, {"count": count, "timeout": 3600})
    made = [result["sandbox"] for result in results]
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda one: answering(one, expected), made))
    return made


class Admin:
    """`soulbox admin snapshot` of the server that is measured."""

    def __init__(self, agent: str) -> None:
        self.program = f"/proc/{agent}/exe"
        line = Path(f"/proc/{agent}/cmdline").read_text().split("\0")
        self.data = Path(f"/proc/{agent}/cwd").resolve() / line[line.index("--data-dir") + 1]
        self.store = "--store" in line

    def run(self, *arguments: str):
        command = [self.program, "admin", "snapshot", *arguments, "--json", "--data-dir", str(self.data)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)

    def newest(self, sandbox: dict) -> dict:
        mine = [it for it in self.run("list") if it["sandbox_id"] == sandbox["sandboxID"]]
        return max(mine, key=lambda it: it["created_at"])

    def statistics(self, name: str) -> dict[str, float]:
        """What CRIU noted of a dump, in milliseconds."""
        found = list((self.data / "pool/snapshots" / name / "images").glob("stats-dump*"))
        return parsed(found[0].read_bytes()) if found else {}


def parsed(image: bytes) -> dict[str, float]:
    """CRIU's stats.proto: two magics, a length, and in field 1 (dump) numbers of microseconds."""
    names = {1: "freezing", 2: "frozen", 3: "memory read", 4: "memory written"}
    (length,) = struct.unpack_from("<I", image, 8)
    fields = list(numbers(image[12 : 12 + length]))
    return {names[key]: value / 1000 for key, value in fields if key in names}


def numbers(bytes_: bytes):
    """Fields of a protobuf message: those of a message within it are its own."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = bytes_[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while at < len(bytes_):
        key = varint()
        if key & 7 == 2:
            length = varint()
            yield from numbers(bytes_[at : at + length])
            at += length
        else:
            yield key >> 3, varint()


def one_heap(table: Table, heap: int, rounds: int, admin: Admin | None) -> None:
    budgets = {60: (200, 100), 1024: (2000, 1000)}.get(heap, (None, None))
    of = f"{heap} MiB"
    sandbox = holder(heap)
    expected = look(sandbox)
    pauses, resumes, criu = [], [], []
    for _ in range(rounds):
        pauses.append(timed(pause, sandbox)[0])
        if admin:
            stored = admin.newest(sandbox)
            criu.append(admin.statistics(stored["snapshot_id"]))
        took, sandbox = timed(resume, sandbox, expected)
        resumes.append(took)
    table.times(f"pause {of}", pauses, p50=budgets[0])
    table.times(f"resume {of}, its heap answering", resumes, p50=budgets[1])
    if admin:
        table.value(f"    stored for {of}", stored["image_bytes"] / 2**20, "MiB of memory")
    for what in criu[0] if criu else ():
        table.times(f"    CRIU, {what}", [one[what] for one in criu])

    frozen, forks = [], []
    for _ in range(rounds):
        look(sandbox)
        took, made = timed(fork, sandbox, 1, expected)
        forks.append(took)
        frozen.append(float(look(sandbox)[2]) * 1000)
        kill(made[0])
    table.times(f"one fork {of}", forks)
    table.times("    frozen meanwhile", frozen)
    if heap <= 100:
        many = []
        for _ in range(max(1, rounds // 3)):
            took, made = timed(fork, sandbox, FORKS, expected)
            many.append(took)
            with ThreadPoolExecutor(FORKS) as threads:
                list(threads.map(kill, made))
            time.sleep(1)
        table.times(f"{FORKS} forks {of}, all answering", many, p50=1500 if heap == 60 else None)

    made = ask("POST", f"/sandboxes/{sandbox['sandboxID']}/snapshots", 201, {})["snapshotID"]
    creates = []
    for _ in range(rounds):
        took, child = timed(lambda: answering(create(made), expected))
        creates.append(took)
        kill(child)
    table.times(f"create from a snapshot {of}", creates)
    if admin and admin.store:
        seal(table, of, sandbox, admin)
    ask("DELETE", f"/templates/{made.split(':')[0]}", 204)
    kill(sandbox)


def seal(table: Table, of: str, sandbox: dict, admin: Admin) -> None:
    """Seals of two pauses, a MiB of the heap changed between them, and a resume from the store alone."""
    for which in ("first", "second"):
        expected = look(sandbox, "/touch")
        pause(sandbox)
        name = admin.newest(sandbox)["snapshot_id"]
        took, sealed = timed(admin.run, "seal", name)
        table.value(f"{which} seal {of}", took / 1000, "s")
        table.value("    of it new in the store", sealed["added_bytes"] / 2**20, "MiB")
        if which == "second":
            admin.run("drop-local", name)
            took, sandbox = timed(resume, sandbox, expected)
            table.value(f"resume from the store {of}", took, "ms")
        else:
            sandbox = resume(sandbox, expected)


def measure(table: Table) -> None:
    agent = os.environ.get("BENCH_AGENT")
    if agent is None:
        table.missing("bytes stored, CRIU's times, seals", "BENCH_AGENT is not set")
    admin = Admin(agent) if agent else None
    warm_connection()
    for heap in HEAPS:
        one_heap(table, heap, table.samples(ROUNDS, least=2), admin)
