"""The daemon inside: commands, output, files, watches, and what it costs. Once through the ingress as users have it, and
once the daemon alone on loopback (target/guests/envd, the program that is embedded), where only it is measured."""

import json
import os
import re
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peer
from client import INGRESS, create, execute, kill, to_port
from table import Table, timed

ENVD = Path(__file__).parents[2] / "target/guests/envd"
GIB = 1 << 30
STREAM = "application/connect+json"


class Place:
    """An address that answers as a daemon, and the headers that lead there."""

    def __init__(self, address: tuple[str, int], headers: dict[str, str]) -> None:
        self.address, self.headers = address, headers

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"", length: int | None = None) -> socket.socket:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (self.headers | headers).items()]
        lines += [f"Content-Length: {len(body) if length is None else length}", "", ""]
        connection = socket.create_connection(self.address, timeout=120)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall("\r\n".join(lines).encode() + body)
        return connection

    def whole(self, *request) -> bytes:
        with self.ask(*request) as connection:
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def drain(connection: socket.socket) -> tuple[int, bytes]:
    """How much came, and its last bytes."""
    buffer, total, last = bytearray(1 << 20), 0, b""
    with connection:
        while length := connection.recv_into(buffer):
            total += length
            last = (last + bytes(buffer[max(0, length - 256) : length]))[-256:]
    return total, last


def envelope(message: dict) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack("!BI", 0, len(body)) + body


def field(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def output(place: Place, codec: str, size: int) -> float:
    """GB/s of a program's stdout."""
    command, arguments = "/usr/bin/head", ["-c", str(size), "/dev/zero"]
    if codec == "json":
        body = envelope({"process": {"cmd": command, "args": arguments}, "stdin": False})
    else:
        config = field(1, command.encode()) + b"".join(field(2, argument.encode()) for argument in arguments)
        message = field(1, config) + b"\x20\x00"
        body = struct.pack("!BI", 0, len(message)) + message
    start = time.perf_counter()
    total, last = drain(place.ask("POST", "/process.Process/Start", {"Content-Type": f"application/connect+{codec}"}, body))
    took = time.perf_counter() - start
    assert total > size and last.rstrip(b"\r\n0").endswith(b"{}"), (total, last)
    return size / took / 1e9


def upload(place: Place, path: str, size: int) -> float:
    """MB/s of one file, its answer included."""
    block = os.urandom(min(size, 1 << 20))
    start = time.perf_counter()
    connection = place.ask("POST", f"/files?path={path}", {"Content-Type": "application/octet-stream"}, length=size)
    for _ in range(size // len(block)):
        connection.sendall(block)
    _, last = drain(connection)
    assert b'"type":"file"' in last, last
    return size / (time.perf_counter() - start) / 1e6


def download(place: Place, path: str, size: int) -> float:
    start = time.perf_counter()
    total, _ = drain(place.ask("GET", f"/files?path={path}", {"Accept-Encoding": "identity"}))
    assert total > size, total
    return size / (time.perf_counter() - start) / 1e6


def listed(place: Place, path: str, entries: int) -> float:
    """Milliseconds for a folder of that many."""
    body = json.dumps({"path": path, "depth": 1}).encode()
    took, answer = timed(place.whole, "POST", "/filesystem.Filesystem/ListDir", {"Content-Type": "application/json"}, body)
    assert answer.count(b'"FILE_TYPE_FILE"') == entries, answer[:300]
    return took


def watched(place: Place, folder: str, count: int) -> list[float]:
    """Milliseconds from a write, by a program beside the daemon's, to the event."""
    connection = place.ask("POST", "/filesystem.Filesystem/WatchDir", {"Content-Type": STREAM}, envelope({"path": folder}))
    buffer, times = b"", []

    def until(text: bytes) -> None:
        nonlocal buffer
        while text not in buffer:
            received = connection.recv(1 << 16)
            assert received, buffer
            buffer += received

    until(b'"start"')
    for number in range(count):
        name = f"{number:06}"
        start = time.perf_counter()
        Path(folder, name).write_text("x")
        until(name.encode())
        times.append((time.perf_counter() - start) * 1000)
        buffer = b""
        time.sleep(0.002)
    connection.close()
    return times


class Alone:
    """The daemon without a sandbox, as root of this machine."""

    def __enter__(self) -> "Alone":
        command = [str(ENVD), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        port = re.fullmatch(r"listening on \S+:(\d+)\n", self.process.stderr.readline()).group(1)
        self.place = Place(("127.0.0.1", int(port)), {})
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def private(self) -> float:
        """MB of its own: without the pages of the program's file."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"Anonymous: +(\d+)", rollup).group(1)) * 1024 / 1e6


def measure_alone(table: Table) -> None:
    if not ENVD.exists():
        table.missing("the daemon alone", "there is no target/guests/envd")
        return
    size = GIB // table.scale >> 20 << 20
    table.value("envd, the program", ENVD.stat().st_size / 1e6, "MB", most=5)
    with Alone() as alone, tempfile.TemporaryDirectory() as folder:
        place = alone.place
        place.whole("GET", "/health", {})
        time.sleep(2)
        table.value("envd, private memory at rest", alone.private(), "MB", most=0.5)
        for codec, least in (("proto", 0.8), ("json", 0.6)):
            rates = [output(place, codec, 2 * size) for _ in range(3)]
            table.value(f"stdout as {codec}, daemon alone", statistics.median(rates), "GB/s", least=least)
        path = f"{folder}/file"
        rates = [(upload(place, path, size), download(place, path, size)) for _ in range(3)]
        table.value("/files, 1 GiB, write, daemon alone", statistics.median(rate for rate, _ in rates), "MB/s", least=500)
        table.value("/files, 1 GiB, read, daemon alone", statistics.median(rate for _, rate in rates), "MB/s", least=1000)
        many = Path(folder, "many")
        many.mkdir()
        for number in range(10_000):
            (many / str(number)).touch()
        table.times("ListDir of 10,000 entries", [listed(place, str(many), 10_000) for _ in range(table.samples(20, 5))])
        events = Path(folder, "events")
        events.mkdir()
        table.times("from a write to its event", watched(place, str(events), table.samples(300)), p50=2)
        time.sleep(2)
        table.value("envd, private memory after all that", alone.private(), "MB")


def copied(sandbox: dict, path: str, size: int) -> float:
    """MB/s of a program inside that writes zeroes over the same file: what its disk takes without us."""
    took, _ = timed(execute, sandbox, "/bin/dd", "if=/dev/zero", f"of={path}", "bs=256k", f"count={size >> 18}")
    return size / took / 1e3


def measure_files(table: Table, place: Place, sandbox: dict) -> None:
    size = GIB // table.scale >> 20 << 20
    for name, length, count in (("1 KiB", 1 << 10, 300), ("1 MiB", 1 << 20, 100), ("1 GiB", size, 3)):
        count = table.samples(count, 3)
        budget = {"write": 500, "read": 1000} if name == "1 GiB" else {"write": None, "read": None}
        written, peers = [], []
        for _ in range(count):
            if name == "1 GiB":
                peers.append(copied(sandbox, "/home/user/bench", length))
            written.append(upload(place, "/home/user/bench", length))
        table.value(f"/files, {name}, write, ingress", statistics.median(written), "MB/s", least=budget["write"])
        if peers:
            table.value("peer: dd inside, 1 GiB, write", statistics.median(peers), "MB/s")
            table.ratio("/files, 1 GiB, write, ingress / dd inside", written, peers)
        read = [download(place, "/home/user/bench", length) for _ in range(count)]
        table.value(f"/files, {name}, read, ingress", statistics.median(read), "MB/s", least=budget["read"])
    for codec in ("proto", "json"):
        rates = [output(place, codec, 2 * size) for _ in range(3)]
        table.value(f"stdout as {codec}, ingress", statistics.median(rates), "GB/s")


def measure(table: Table) -> None:
    measure_alone(table)
    sandbox = create()
    try:
        for _ in range(20):
            execute(sandbox)
        executed = [timed(execute, sandbox)[0] for _ in range(table.samples(500))]
        count = table.samples(2000)
        with ThreadPoolExecutor(16) as pool:
            took, _ = timed(lambda: list(pool.map(lambda _: execute(sandbox), range(count))))
        table.times("exec of true, over RPC", executed, p50=2)
        table.value("exec of true, 16 at a time", count / took * 1000, "a second")
        plain = [timed(subprocess.run, ["/bin/true"])[0] for _ in range(table.samples(200))]
        table.times("peer: fork and exec of true, Python", plain)
        measure_files(table, Place((INGRESS.hostname, INGRESS.port), to_port(sandbox, 49983)), sandbox)
    finally:
        kill(sandbox)
    if table.root is None:
        table.missing("exec / runc exec", "no BENCH_ROOT")
        return
    inside = peer.exec_true(table.root, table.samples(30, 10))
    table.times("peer: runc exec true", inside)
    table.ratio("exec / runc exec", executed, inside, most=0.1)
