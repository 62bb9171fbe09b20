"""Clients that mean ill or cannot do better: each gets a typed error or a closed connection, nobody hangs, another sandbox works as
before, and the front has afterwards what it had before."""

import json
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import hpack
import httpx
import pytest
from conftest import Server, until
from e2b import Sandbox

# A head must be there after five seconds, and every five seconds somebody looks; five times that is this suite's slack.
HEAD_WITHIN = 50
MIB = 1 << 20


@pytest.fixture(scope="module")
def running():
    made = Server()
    try:
        yield made.start("--warm", "2", "--parked", "1")
    finally:
        made.end()


class Front:
    """The process that all of this is aimed at."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pid = server.front()
        self.address = ("127.0.0.1", server.port)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the front has no VmRSS")

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=HEAD_WITHIN)


@pytest.fixture(scope="module")
def witness(running):
    with Sandbox.create("base", timeout=900) as made:
        yield made


@pytest.fixture
def front(running, witness):
    """Before and after each test: another sandbox answers, and the front is the same process with as many descriptors."""
    front = Front(running)
    assert witness.commands.run("echo on").stdout == "on\n"
    before = front.descriptors()
    yield front
    assert running.front() == front.pid, "the front was replaced"
    assert witness.commands.run("echo on", timeout=20).stdout == "on\n"
    until("descriptors are given back", lambda: front.descriptors() <= before + 2, 60)


@pytest.fixture
def victim(front):
    """The sandbox that is attacked. It is gone before descriptors are counted, and with it what was pooled for it."""
    made = Sandbox.create("base", timeout=600)
    try:
        yield made
        assert made.commands.run("echo still here", timeout=20).stdout == "still here\n"
    finally:
        made.kill()


def head(sandbox: Sandbox, method: str, path: str, port: int = 49983, **headers: str) -> bytes:
    """The beginning of a request for a port of the sandbox, with its token."""
    fields = {
        "Host": "localhost",
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": str(port),
        "X-Access-Token": sandbox._envd_access_token,
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}".encode()


def closed(connection: socket.socket) -> bytes:
    """All that comes until the server closes, which it must."""
    received = b""
    connection.settimeout(HEAD_WITHIN)
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One whole answer of HTTP/1.1 with a content length."""
    reader = connection.makefile("rb")
    status = int(reader.readline().split()[1])
    headers = {}
    while line := reader.readline().strip():
        name, value = line.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    return status, headers, reader.read(int(headers.get("content-length", 0)))


class Http2:
    """A connection of HTTP/2 without TLS, by prior knowledge."""

    def __init__(self, front: Front) -> None:
        self.socket = front.connect()
        self.socket.settimeout(20)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.statuses: dict[int, int] = {}
        self.ended = False
        self.flush()

    def flush(self) -> None:
        try:
            self.socket.sendall(self.h2.data_to_send())
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True

    def ask(self, sandbox: Sandbox, path: str, body: bytes | None = None, **more: str) -> int:
        stream = self.h2.get_next_available_stream_id()
        fields = [
            (":method", "GET" if body is None else "POST"),
            (":scheme", "http"),
            (":authority", f"49983-{sandbox.sandbox_id}.sandboxes.test"),
            (":path", path),
            ("x-access-token", sandbox._envd_access_token),
            *((name.replace("_", "-"), value) for name, value in more.items()),
        ]
        self.h2.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=True)
        return stream

    def receive(self, done, within: float = 60) -> None:
        """Takes what comes until `done()` or the server ends the connection."""
        deadline = time.monotonic() + within
        while not done() and not self.ended:
            assert time.monotonic() < deadline, "neither an answer nor an end"
            try:
                received = self.socket.recv(65536)
            except ConnectionResetError:
                received = b""
            if not received:
                self.ended = True
                return
            for event in self.h2.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    self.statuses[event.stream_id] = int(dict(event.headers)[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.ConnectionTerminated):
                    self.ended = True
            self.flush()

    def close(self) -> None:
        self.socket.close()


def test_clients_that_say_nothing_or_half_a_head_are_let_go(front, victim):
    silent = [front.connect() for _ in range(100)]
    half = [front.connect() for _ in range(100)]
    for number, connection in enumerate(half):
        beginning = head(victim, "GET", "/health") if number % 2 else b"GET /health HTT"
        connection.sendall(beginning)
    for connection in silent + half:
        assert closed(connection) == b""
        connection.close()


def test_heads_that_come_by_the_byte_are_cut_off(front, victim):
    def drip(beginning: bytes) -> float:
        started = time.monotonic()
        with front.connect() as connection:
            connection.settimeout(0.4)
            connection.sendall(beginning)
            while time.monotonic() - started < HEAD_WITHIN:
                try:
                    connection.sendall(b"a")
                    if connection.recv(4096) == b"":
                        return time.monotonic() - started
                except TimeoutError:
                    continue
                except OSError:
                    return time.monotonic() - started
        raise AssertionError("the server waits for as long as it pleases the client")

    beginnings = [head(victim, "GET", "/health") + b"X-Slow: ", b"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-Slow: "]
    with ThreadPoolExecutor(20) as pool:
        assert max(pool.map(drip, beginnings * 10)) < HEAD_WITHIN


def test_uploads_that_are_reset(front, victim):
    for number in range(60):
        connection = front.connect()
        path = f"/files?path=/tmp/reset-{number % 4}"
        fields = {"Content_Type": "application/octet-stream", "Content_Length": str(64 * MIB)}
        connection.sendall(head(victim, "POST", path, **fields) + b"\r\n" + bytes(200_000))
        # Half of them vanish by a reset, the others by an end in the middle.
        if number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    inside = "ls /proc/$(pgrep -x soulbox-envd)/fd | wc -l"
    until("envd has let go", lambda: int(victim.commands.run(inside, user="root").stdout) < 60, 30)


def test_clients_that_close_their_half(front, victim):
    """Whoever has said its last word is answered or let go, and so is what it followed; the program that it started goes on."""
    message = json.dumps({"process": {"cmd": "/bin/sleep", "args": ["7070"]}, "stdin": False}).encode()
    started = head(victim, "POST", "/process.Process/Start", Content_Type="application/connect+json", Content_Length=str(5 + len(message)))
    started += b"\r\n" + struct.pack(">BI", 0, len(message)) + message
    for request, status in [(head(victim, "GET", "/health") + b"\r\n", b"204"), (started, b"200")] * 10:
        connection = front.connect()
        connection.sendall(request)
        if status == b"200":
            assert connection.recv(12) == b"HTTP/1.1 200"
        connection.shutdown(socket.SHUT_WR)
        received = closed(connection)
        assert status == b"200" or received == b"" or received.split()[1] == status, received
        connection.close()
    inside = "ls /proc/$(pgrep -x soulbox-envd)/fd | wc -l"
    until("envd has let go", lambda: int(victim.commands.run(inside, user="root").stdout) < 60, 30)
    assert sum(process.args == ["7070"] for process in victim.commands.list()) == 10


def test_slow_readers_and_writers(front, victim):
    victim.commands.run("head -c 100M /dev/zero > /tmp/big")
    before = front.resident()
    readers = []
    for _ in range(20):
        connection = front.connect()
        connection.sendall(head(victim, "GET", "/files?path=/tmp/big") + b"\r\n")
        readers.append(connection)
    writer = front.connect()
    fields = {"Content_Type": "application/octet-stream", "Content_Length": "30"}
    writer.sendall(head(victim, "POST", "/files?path=/tmp/slow", **fields) + b"\r\n")
    for _ in range(30):
        for connection in readers:
            assert connection.recv(1024)
        writer.sendall(b"x")
        time.sleep(0.1)
    assert answer(writer)[0] == 200
    assert victim.files.read("/tmp/slow") == "x" * 30
    assert front.resident() - before < 64 * MIB, "what nobody reads is kept"
    for connection in [*readers, writer]:
        connection.close()


def test_heads_of_a_megabyte(front, victim):
    for beginning in (head(victim, "GET", "/health"), b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
        connection = front.connect()
        try:
            connection.sendall(beginning + b"X-Large: " + b"a" * MIB + b"\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # It need not read on.
        received = closed(connection)
        assert received == b"" or received.split()[1] in (b"431", b"400"), received[:200]
        connection.close()
    many = b"".join(b"X-%d: a\r\n" % number for number in range(5000))
    connection = front.connect()
    connection.sendall(head(victim, "GET", "/health") + many + b"\r\n")
    assert closed(connection).split()[1] == b"431"
    connection.close()

    http2 = Http2(front)
    # By hand: the library would not send what the server forbids.
    fields = {":method": "GET", ":scheme": "http", ":authority": "localhost", ":path": "/health", "x-large": "a" * MIB}
    block = hpack.Encoder().encode(fields, huffman=False)
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    try:
        for number, piece in enumerate(pieces):
            kind, flags = (1, 1) if number == 0 else (9, 0)
            flags |= 4 if number == len(pieces) - 1 else 0
            http2.socket.sendall(struct.pack(">I", len(piece))[1:] + bytes([kind, flags, 0, 0, 0, 1]) + piece)
    except (BrokenPipeError, ConnectionResetError):
        pass
    said = frames(closed(http2.socket))
    status = [hpack.Decoder().decode(payload)[0] for kind, payload in said if kind == 1]
    assert [(":status", "431")] == status or 7 in {kind for kind, _ in said} or not status, said
    http2.close()


def frames(received: bytes) -> list[tuple[int, bytes]]:
    """Types and payloads of frames of HTTP/2."""
    found = []
    while len(received) >= 9:
        length = int.from_bytes(received[:3])
        found.append((received[3], received[9 : 9 + length]))
        received = received[9 + length :]
    return found


def test_streams_opened_and_reset_at_once(front, victim):
    before = front.resident()
    http2 = Http2(front)
    for _ in range(200):
        for _ in range(50):
            http2.h2.reset_stream(http2.ask(victim, "/health"))
        http2.flush()
        if http2.ended:
            break
    # Either the connection was ended, or it still serves: what it never does is to stand still.
    if not http2.ended:
        stream = http2.ask(victim, "/health")
        http2.flush()
        http2.receive(lambda: stream in http2.statuses)
        assert http2.ended or http2.statuses[stream] == 204
    http2.close()
    assert front.resident() - before < 64 * MIB


def test_floods_of_pings_and_settings(front, victim):
    before = front.resident()
    for frame in (b"\0\0\x08\x06\0\0\0\0\0" + bytes(8), b"\0\0\0\x04\0\0\0\0\0"):
        http2 = Http2(front)
        http2.socket.settimeout(10)
        # The answers are not read: the server may wait, or end it, but not keep them all.
        try:
            for _ in range(200):
                http2.socket.sendall(frame * 1000)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        assert front.resident() - before < 64 * MIB
        http2.close()


def test_a_thousand_idle_streams(front, victim):
    idle = victim.commands.run("sleep 600", background=True, timeout=0)
    message = json.dumps({"process": {"pid": idle.pid}}).encode()
    body = struct.pack(">BI", 0, len(message)) + message
    before = front.resident()
    connections = []
    for _ in range(10):
        http2 = Http2(front)
        streams = [
            http2.ask(victim, "/process.Process/Connect", body, content_type="application/connect+json") for _ in range(100)
        ]
        http2.flush()
        http2.receive(lambda: len(http2.statuses) == len(streams))
        assert set(http2.statuses.values()) == {200}
        connections.append(http2)
    assert victim.commands.run("echo between").stdout == "between\n"
    grown = front.resident() - before
    print(f"\n1,000 idle streams: {grown / 1000 / 1024:.0f} KiB of the front's memory each")
    assert grown < 200 * MIB
    for http2 in connections:
        http2.close()
    inside = "ls /proc/$(pgrep -x soulbox-envd)/fd | wc -l"
    # Idle connections may wait for the next request, 64 of a sandbox.
    until("envd has let go", lambda: int(victim.commands.run(inside, user="root").stdout) < 150, 60)
    assert idle.kill()


def test_bodies_of_another_kind(front, victim):
    base = f"http://127.0.0.1:{front.address[1]}"
    key = {"X-API-Key": os.environ["E2B_API_KEY"]}
    into = {"E2b-Sandbox-Id": victim.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": victim._envd_access_token}
    with httpx.Client(base_url=base, timeout=20, trust_env=False) as client:
        unknown = {"templateID": "base", "timeout": 30, "no_such_field": [1], "network": {"alsoNone": None}}
        created = client.post("/v2/sandboxes", json=unknown, headers=key)
        assert created.status_code == 201, created.text
        client.delete(f"/sandboxes/{created.json()['sandboxID']}", headers=key)
        for body, kind in (("templateID=base", "application/x-www-form-urlencoded"), ("<a/>", "text/xml"), ("{", "application/json")):
            refused = client.post("/v2/sandboxes", content=body, headers=key | {"Content-Type": kind})
            assert refused.status_code in (400, 415) and refused.json()["code"] == refused.status_code, refused.text
        listed = client.post("/process.Process/List", json={"no_such_field": 1}, headers=into)
        assert listed.status_code == 200, listed.text
        for kind in ("text/plain", "application/xml"):
            refused = client.post("/process.Process/List", content=b"{}", headers=into | {"Content-Type": kind})
            assert refused.status_code == 415, refused.text
        refused = client.post("/process.Process/List", content=b"[", headers=into | {"Content-Type": "application/json"})
        assert refused.status_code == 400 and refused.json()["code"] == "invalid_argument"
        refused = client.post("/files?path=/tmp/x", content=b"x", headers=into | {"Content-Type": "multipart/form-data"})
        assert refused.status_code in (400, 415), refused.text


def test_garbage_instead_of_http(front, victim):
    for garbage in (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + os.urandom(500), os.urandom(2000), b"\r\n" * 3 + b"\0" * 100):
        connection = front.connect()
        try:
            connection.sendall(garbage)
        except (BrokenPipeError, ConnectionResetError):
            pass
        received = closed(connection)
        assert received == b"" or received.split()[1] == b"400", received[:100]
        connection.close()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for frames in (os.urandom(64), b"\xff\xff\xff\x00\0\0\0\0\1" + bytes(1000), b"\0\0\4\3\0\0\0\0\7" + bytes(4)):
        connection = front.connect()
        connection.sendall(preface + frames)
        closed(connection)
        connection.close()
