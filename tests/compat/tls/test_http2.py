"""HTTP/2 over TLS, as the packages speak it where only E2B_DOMAIN is set: streams of one connection are apart."""

import json
import os
import socket
import ssl
import struct
import threading
import time

import h2.config
import h2.connection
import h2.events
import pytest
from e2b import Sandbox

TEMPLATE = os.environ.get("SOULBOX_TEST_TEMPLATE", "base")
CANCEL, NO_ERROR = 8, 0


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox.create(TEMPLATE, timeout=300) as made:
        yield made


def secure(host: str, *protocols: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    context.set_alpn_protocols(list(protocols))
    return context.wrap_socket(socket.create_connection((host, 443), timeout=20), server_hostname=host)


class Connection:
    """One HTTP/2 connection to the daemon of a sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.host = sandbox.get_host(49983)
        self.token = sandbox._envd_access_token
        self.socket = secure(self.host, "h2")
        assert self.socket.selected_alpn_protocol() == "h2"
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.data: dict[int, bytes] = {}
        self.closed: set[int] = set()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def start(self, script: str) -> int:
        stream = self.h2.get_next_available_stream_id()
        message = json.dumps({"process": {"cmd": "/bin/sh", "args": ["-c", script]}, "stdin": False}).encode()
        self.h2.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", self.host),
                (":path", "/process.Process/Start"),
                ("content-type", "application/connect+json"),
                ("x-access-token", self.token),
            ],
        )
        self.h2.send_data(stream, struct.pack(">BI", 0, len(message)) + message, end_stream=True)
        self.data[stream] = b""
        self.flush()
        return stream

    def receive(self, done, within: float = 30, reading=lambda stream: True) -> None:
        """Takes what comes until `done()`; streams that are not `reading` give no room for more."""
        deadline = time.monotonic() + within
        while not done():
            assert time.monotonic() < deadline, "not in time"
            received = self.socket.recv(65536)
            assert received, "the connection was closed"
            for event in self.h2.receive_data(received):
                if isinstance(event, h2.events.DataReceived):
                    self.data[event.stream_id] += event.data
                    if event.stream_id not in self.closed and reading(event.stream_id):
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self.closed.add(event.stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    raise AssertionError(f"stream {event.stream_id} was reset")
            self.flush()

    def reset(self, stream: int, code: int) -> None:
        self.closed.add(stream)
        self.h2.reset_stream(stream, code)
        self.flush()


def test_envd_022_streams_of_one_connection_are_apart(sandbox):
    connection = Connection(sandbox)
    streams = [connection.start(f"sleep 2; echo number {n}") for n in range(100)]
    # Both packages' ways to leave; neither may disturb the 98 others.
    connection.receive(lambda: all(connection.data[stream] for stream in streams))
    gone = {streams[3]: CANCEL, streams[70]: NO_ERROR}
    for stream, code in gone.items():
        connection.reset(stream, code)
    left = [stream for stream in streams if stream not in gone]
    connection.receive(lambda: all(stream in connection.closed for stream in left))
    for stream in left:
        assert b'"status":"exit status 0"' in connection.data[stream]
    connection.socket.close()


@pytest.mark.parametrize("code", [CANCEL, NO_ERROR])
def test_envd_022_a_reset_detaches_the_listener(sandbox, code):
    connection = Connection(sandbox)
    marker = f"/tmp/passed-{code}"
    stream = connection.start(f"head -c 50000000 /dev/zero; touch {marker}")
    # It stalls: the window of the stream is never opened again.
    connection.receive(lambda: len(connection.data[stream]) > 10_000, reading=lambda _: False)
    time.sleep(1)
    assert not sandbox.files.exists(marker), "held back by its reader"
    connection.reset(stream, code)
    deadline = time.monotonic() + 10
    while not sandbox.files.exists(marker):
        assert time.monotonic() < deadline, "still held back"
        time.sleep(0.05)
    connection.socket.close()


def test_sdk_10_downloads_by_http_1_while_a_command_runs_on_2(sandbox):
    for protocol in ("http/1.1", "h2"):
        with secure(sandbox.get_host(49983), protocol) as offered:
            assert offered.selected_alpn_protocol() == protocol
    with secure(sandbox.get_host(49983), "h2", "http/1.1") as offered:
        assert offered.selected_alpn_protocol() == "h2"
    content = os.urandom(1 << 20)
    sandbox.files.write("/tmp/mebibyte", content)
    ended = threading.Event()
    command = threading.Thread(target=lambda: (sandbox.commands.run("sleep 2"), ended.set()))
    command.start()
    assert bytes(sandbox.files.read("/tmp/mebibyte", format="bytes")) == content
    assert not ended.is_set()
    command.join(20)
    assert ended.is_set()
