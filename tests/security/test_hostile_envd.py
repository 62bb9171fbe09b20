"""The daemon of a sandbox is the sandbox's: whoever breaks into it says to the server what he likes. The server keeps its limits and its head.

The daemon is replaced by an impostor (impostor.py), before its sandbox is claimed or while it runs.
"""

import http.client
import json
import os
import struct
import time
import urllib.error
import urllib.request

import pytest
from conftest import agents_inside
from e2b import CommandExitException, Sandbox
from e2b.exceptions import SandboxException
from impostor import Impostor, end, flood, say, silence
from server import Server, until
from test_file_attacks import address, headers_of
from test_limits import rss

MIB = 1 << 20
# `INIT_WITHIN` of crates/soulbox-cli/src/front/hosts.rs, and room for a busy machine.
INIT_WITHIN = 10
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def server():
    """With few slots ahead, so that a test knows which one the next sandbox gets."""
    made = Server()
    try:
        yield made.start("--warm", "1", "--parked", "0")
    finally:
        made.end()


@pytest.fixture
def ahead(server):
    """The envd of the slot that the next create will claim."""
    ours = {sandbox for sandbox in agents_inside(server)}
    until("one slot is ahead", lambda: len(agents_inside(server)) >= 1, 20)
    time.sleep(0.3)
    found = agents_inside(server)
    assert ours <= set(found)
    return found[-1]


def inside(server, sandbox: Sandbox) -> int:
    """The envd of this sandbox: the one whose /run names it."""
    for pid in agents_inside(server):
        try:
            with open(f"/proc/{pid}/root/run/e2b/.E2B_SANDBOX_ID") as file:
                if file.read() == sandbox.sandbox_id:
                    return pid
        except OSError:
            continue
    raise AssertionError("no envd of this sandbox")


def healthy(server, sandbox: Sandbox | None = None) -> None:
    assert server.answers()
    if sandbox:
        assert sandbox.commands.run("echo mine", timeout=20).stdout == "mine\n"


def create() -> tuple[int, dict]:
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes",
        json.dumps({"templateID": "base", "timeout": 60}).encode(),
        {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# --- while it is made ---------------------------------------------------------------------------------------------


INITS = {
    "never answers": silence,
    "hangs up": end,
    "speaks no HTTP": say(b"\x16\x03\x01" + bytes(100)),
    "says no": say(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
    "says moved": say(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:22/\r\nContent-Length: 0\r\n\r\n"),
    "headers without end": flood(b"HTTP/1.1 204 No Content\r\n", b"X-Header: " + b"x" * 1000 + b"\r\n"),
    "one header without end": flood(b"HTTP/1.1 204 No Content\r\nX: ", b"x" * 65536),
    "status line without end": flood(b"HTTP/1.1 204 ", b"x" * 65536),
    "interim answers without end": flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "an error without end": flood(b"HTTP/1.1 500 Internal Server Error\r\n\r\n", b"x" * 65536),
    "an error of chunks without end": flood(b"HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10000),
}


@pytest.mark.parametrize("what", INITS)
def test_a_daemon_that_spoils_the_create(server, ahead, what):
    """The create ends with an error, in time and in bounded memory, and its slot is given back."""
    before = rss(server.front()), rss(server.process.pid)
    with Impostor(ahead, INITS[what]) as impostor:
        started = time.monotonic()
        status, body = create()
        took = time.monotonic() - started
        assert any(request.startswith(b"POST /init") for request in impostor.requests), "the control: it was asked"
    assert status in (500, 502, 503, 504), body
    assert took < 2 * INIT_WITHIN, f"{took:.1f} s"
    for pid, memory in zip((server.front(), server.process.pid), before):
        assert rss(pid) < memory + 64 * MIB
    until("the slot is gone", lambda: not os.path.exists(f"/proc/{ahead}"), 20)
    assert Sandbox.list().next_items() == []
    with Sandbox.create("base", timeout=60) as fresh:
        healthy(server, fresh)


def test_a_daemon_that_answers_as_it_should(server, ahead):
    """The control: the same impostor, polite, and the create succeeds."""
    with Impostor(ahead, say(NO_CONTENT)):
        status, body = create()
        assert status == 201, body
    Sandbox.connect(body["sandboxID"]).kill()


# --- while it runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def neighbour(server):
    with Sandbox.create("base", timeout=300) as made:
        yield made
        healthy(server, made)


def envelope(flags: int, length: int, body: bytes) -> bytes:
    return struct.pack("!BI", flags, length) + body


STREAM = OK + b"Content-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def event(what: dict) -> bytes:
    text = json.dumps({"event": what}).encode()
    return chunk(envelope(0, len(text), text))


ANSWERS = {
    "nothing": silence,
    "hangs up": end,
    "garbage": say(bytes(range(256)) * 100),
    "headers without end": flood(OK, b"X-Header: " + b"x" * 1000 + b"\r\n"),
    "one header without end": flood(OK + b"X: ", b"x" * 65536),
    "interim answers without end": flood(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 1000),
    "two lengths": say(OK + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello"),
    "a length and chunks": say(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    "a length that it does not keep": say(OK + b"Content-Type: application/connect+json\r\nContent-Length: 100\r\n\r\nx"),
    "a chunk of a size that is none": say(STREAM + b"zzzz\r\n"),
    "a chunk of more than there is": say(STREAM + b"ffffffffffffffff\r\nx"),
    "a chunk extension without end": flood(STREAM + b"1;", b"x" * 65536),
    "trailers without end": flood(STREAM + b"0\r\n", b"X-Trailer: " + b"x" * 1000 + b"\r\n"),
    "a frame of four gigabytes": say(STREAM + chunk(envelope(0, 0xFFFFFFFF, b"x")) + b"0\r\n\r\n"),
    "flags that nobody knows": say(STREAM + chunk(envelope(0xFE, 2, b"{}")) + b"0\r\n\r\n"),
    "a frame that is no JSON": say(STREAM + chunk(envelope(0, 4, b"\xff\xfe\0{")) + b"0\r\n\r\n"),
    "events of another process": say(STREAM + event({"data": {"stdout": "b3RoZXJz"}}) + event({"start": {"pid": 1}}) + event({"start": {"pid": 2}}) + b"0\r\n\r\n"),
    "an end that never began": say(STREAM + event({"end": {"exited": True, "status": "exit status 0"}}) + b"0\r\n\r\n"),
    "a switch that nobody asked for": say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n" + bytes(100)),
    "two answers to one question": say(OK + b"Content-Length: 2\r\n\r\n{}" + OK + b"Content-Length: 9\r\n\r\nstolen me"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_daemon_that_answers_badly(server, neighbour, what):
    """Through the package, as its user would notice it: an error or an end, in time. Nobody else notices."""
    with Sandbox.create("base", timeout=120) as sandbox:
        memory = rss(server.front()), rss(server.process.pid)
        with Impostor(inside(server, sandbox), ANSWERS[what]) as impostor:
            started = time.monotonic()
            with pytest.raises(Exception) as raised:
                sandbox.commands.run("echo asked", timeout=2, request_timeout=2)
            assert time.monotonic() - started < 20
            assert not isinstance(raised.value, CommandExitException) or raised.value.stdout in ("", "others"), raised.value
            assert any(b"/process.Process/Start" in request for request in impostor.requests), "the control: it was asked"
            healthy(server, neighbour)
            for pid, before in zip((server.front(), server.process.pid), memory):
                assert rss(pid) < before + 64 * MIB
            # What needs no daemon works.
            assert sandbox.get_info().sandbox_id == sandbox.sandbox_id
        sandbox.set_timeout(60)
        started = time.monotonic()
    assert time.monotonic() - started < 10, "it is killed all the same"


# `MAX_HEADER_SIZE` of crates/soulbox-ingress/src/upstream.rs is 128 KiB.
@pytest.mark.parametrize(("size", "status"), [(100_000, 200), (200_000, 502)])
def test_the_head_of_an_answer_has_a_limit(server, size, status):
    """Whole and in order, only too long: it is not kept until its end is seen."""
    head = OK + b"X-Long: " + b"x" * size + b"\r\nContent-Length: 2\r\n\r\nok"
    with Sandbox.create("base", timeout=120) as sandbox, Impostor(inside(server, sandbox), say(head)):
        connection = http.client.HTTPConnection(*address(sandbox), timeout=10)
        # It is the server's head that is tried here, not what this client takes.
        http.client._MAXLINE, before = 1 << 20, http.client._MAXLINE
        try:
            connection.request("GET", "/files?path=/tmp/x", headers=headers_of(sandbox))
            assert connection.getresponse().status == status
        finally:
            http.client._MAXLINE = before
            connection.close()


def test_an_answer_of_one_sandbox_is_never_given_to_another(server, neighbour):
    """Bytes behind an answer wait on a connection that might be used again: not by anybody else, nor as an answer to the next question."""
    extra = OK + b"Content-Length: 7\r\n\r\nstolen!"
    with Sandbox.create("base", timeout=120) as sandbox:
        with Impostor(inside(server, sandbox), say(OK + b"Content-Length: 4\r\n\r\nmine" + extra)):
            for _ in range(20):
                connection = http.client.HTTPConnection(*address(sandbox), timeout=10)
                connection.request("GET", "/files?path=/tmp/x", headers=headers_of(sandbox))
                answer = connection.getresponse()
                # Its own daemon may lie to it, but each answer belongs to its question.
                assert answer.status == 502 or answer.read() == b"mine"
                connection.close()
                healthy(server, neighbour)


def test_a_flood_to_a_slow_reader(server, neighbour):
    """A gigabyte for somebody who takes none of it: it waits inside the sandbox, not in the server."""
    with Sandbox.create("base", timeout=120) as sandbox:
        before = rss(server.front())
        with Impostor(inside(server, sandbox), flood(OK + b"Content-Length: 1073741824\r\n\r\n", b"x" * MIB)):
            readers = []
            for _ in range(8):
                connection = http.client.HTTPConnection(*address(sandbox), timeout=10)
                connection.request("GET", "/files?path=/tmp/x", headers=headers_of(sandbox))
                answer = connection.getresponse()
                assert answer.status == 200 and answer.read(10) == b"x" * 10
                readers.append((connection, answer))
            peak, end_at = 0, time.monotonic() + 2
            while time.monotonic() < end_at:
                peak = max(peak, rss(server.front()))
                healthy(server, neighbour)
            for connection, answer in readers:
                answer.close()
                connection.close()
        assert peak < before + 64 * MIB, f"{(peak - before) // MIB} MiB more"


def test_headers_of_a_daemon_do_not_speak_for_the_server(server):
    """Cookies, redirects and the names of other hosts are the sandbox's own business; the hop's own headers are not passed on."""
    head = OK + b"Connection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=999\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok"
    with Sandbox.create("base", timeout=120) as sandbox, Impostor(inside(server, sandbox), say(head)):
        connection = http.client.HTTPConnection(*address(sandbox), timeout=10)
        connection.request("GET", "/files?path=/tmp/x", headers=headers_of(sandbox))
        answer = connection.getresponse()
        assert answer.read() == b"ok"
        for name in ("x-secret", "keep-alive", "proxy-authenticate"):
            assert answer.getheader(name) is None, name
        connection.close()


def test_the_sandbox_goes_on_when_its_daemon_is_itself_again(server):
    """The control of all of the above: the impostor leaves no trace."""
    with Sandbox.create("base", timeout=120) as sandbox:
        with Impostor(inside(server, sandbox), end):
            with pytest.raises(SandboxException):
                sandbox.commands.run("true", timeout=3)
        healthy(server, sandbox)
