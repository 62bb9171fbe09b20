"""The file interfaces of a sandbox, asked badly: whatever the path or the body, it stays inside, and the sandbox and its neighbours go on.

A path means what root of the sandbox sees: there is nothing to protect between its users (sudo is free), all to protect outside.
"""

import gzip
import http.client
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress

import pytest
from conftest import exit_code, on_host
from e2b import Sandbox
from e2b.exceptions import AuthenticationException, InvalidArgumentException, NotFoundException, SandboxException
from server import until
from test_limits import agent_of, rss

MIB = 1 << 20
# So long may a bad request take on a busy machine; a daemon that is held takes for ever.
SOON = 10


def address(sandbox: Sandbox) -> tuple[str, int]:
    url = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])
    return url.hostname, url.port


def headers_of(sandbox: Sandbox) -> dict[str, str]:
    return {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox._envd_access_token,
    }


def ask(sandbox: Sandbox, target: str, method: str = "GET", body=None, **headers: str) -> tuple[int, bytes]:
    """Status and body of one request to envd, its target exactly as it is given."""
    connection = http.client.HTTPConnection(*address(sandbox), timeout=SOON)
    try:
        connection.request(method, target, body, headers_of(sandbox) | headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def read(sandbox: Sandbox, path: str) -> tuple[int, bytes]:
    return ask(sandbox, "/files?username=root&path=" + urllib.parse.quote(path, safe=""))


def write(sandbox: Sandbox, path: str, body: bytes = b"written") -> int:
    target = "/files?username=root&path=" + urllib.parse.quote(path, safe="")
    return ask(sandbox, target, "POST", body, **{"Content-Type": "application/octet-stream"})[0]


@pytest.fixture
def canary(tmp_path):
    """A file of the host's; nothing may read or change it."""
    path = tmp_path / "canary"
    path.write_text("of the host")
    yield path
    assert path.read_text() == "of the host"
    assert [entry.name for entry in tmp_path.iterdir()] == ["canary"]


def answers(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("echo answers", timeout=SOON).stdout == "answers\n"


# --- paths ---------------------------------------------------------------------------------------------------


# To the root of the host, if anything led there.
WAYS_UP = (
    "/..", "/../../../../../..", "../../../../../../../..", "/tmp/../../..", "/proc/self/root", "/proc/1/root", "/proc/2/root",
    "/proc/self/cwd/../..", "/proc/1/root/../..", "/proc/thread-self/root", "/tmp/up", "/tmp/up/up", "/dev/fd/../../root", "/dev/shm/../../..",
    "/usr/lib/soulbox/../../../..",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS_UP)
def test_no_way_up_leads_out(own_root, canary, way):
    sandbox = own_root
    status, body = read(sandbox, f"{way}{canary}")
    assert status in (404, 500) and b"of the host" not in body, way
    assert sandbox.files.exists(f"{way}{canary}") is False
    # What is written stays inside: a file of the sandbox, under whatever name.
    inside = f"{way}/tmp/from-above"
    if write(sandbox, inside) == 200:
        assert sandbox.commands.run("cat /tmp/from-above || cat /home/user/tmp/from-above", user="root").stdout == "written"
    assert not os.path.exists("/tmp/from-above")


@pytest.fixture(scope="module")
def own_root(server):
    """A sandbox whose root has prepared links to everywhere."""
    with Sandbox.create("base", timeout=600) as made:
        prepare = "ln -s / /tmp/up; ln -s /proc/1/root/../../../.. /tmp/far; ln -s /proc/self/fd/0 /tmp/magic; mkfifo /tmp/fifo; ln -s loop /tmp/loop"
        made.commands.run(prepare, user="root")
        yield made


@pytest.mark.parametrize("written", ["%2e%2e%2f%2e%2e%2f", "..%2f..%2f", "%252e%252e%252f", "..%252f", "%c0%ae%c0%ae/", "..%5c..%5c", "....//"])
def test_encoded_dots_lead_nowhere(own_root, canary, written):
    """In the query and in the path of the request, once and twice encoded."""
    for target in (
        f"/files?username=root&path=/tmp/{written * 8}{canary}",
        f"/files?username=root&path={written * 8}{canary}",
        f"/files/{written * 8}{canary}",
        f"/{written * 8}files?path={canary}",
        f"/files?username={written}root&path={canary}",
    ):
        status, body = ask(own_root, target)
        assert status in (400, 401, 404, 500) and b"of the host" not in body, target
    answers(own_root)


def test_a_nul_ends_no_path(own_root):
    for path in ("/etc/passwd\0.txt", "\0", "/tmp/a\0/../../etc/passwd"):
        assert read(own_root, path)[0] == 400
        assert write(own_root, path) == 400
        with pytest.raises((InvalidArgumentException, SandboxException)):
            own_root.files.list(path)
        with pytest.raises((InvalidArgumentException, SandboxException)):
            own_root.files.rename("/tmp/magic", path)
    answers(own_root)


def test_long_and_odd_names(own_root):
    for path in ("/" + "a" * 5000, "/tmp/" + "d/" * 3000, "/tmp/\udcff", "/tmp/" + "\u202e" * 50, "/tmp/loop"):
        path = path.encode("utf-8", "surrogateescape").decode("latin-1")
        assert read(own_root, path)[0] in (400, 404, 414, 431, 500), path[:20]
    answers(own_root)


def test_hosts_files_are_not_named_by_magic_links(own_root, canary):
    """The links of /proc lead to what a process has open: nothing of the host is open in any process of the sandbox."""
    look = "for link in /proc/[0-9]*/fd/* /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe; do readlink $link; done | sort -u"
    seen = own_root.commands.run(look, user="root").stdout.split("\n")
    assert any(line.startswith("/usr/") for line in seen)
    for line in seen:
        assert str(canary.parent) not in line and "d-sec" not in line and "/pool/" not in line, line
    for entry in ("fd", "map_files", "task", "cwd", "root"):
        status, body = read(own_root, f"/proc/2/{entry}/0{canary}")
        assert status in (404, 500) and b"of the host" not in body


# --- what is no plain file -------------------------------------------------------------------------------------


def test_a_fifo_does_not_hold_the_daemon(own_root, neighbour):
    """Read and written by three interfaces with nobody at its other end."""
    assert read(own_root, "/tmp/fifo")[0] in (200, 400, 500)
    assert write(own_root, "/tmp/fifo") in (400, 500)
    assert own_root.files.get_info("/tmp/fifo").name == "fifo"
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="/tmp/fifo"\r\n\r\nx\r\n--b--\r\n'
    assert ask(own_root, "/files?username=root", "POST", form, **{"Content-Type": "multipart/form-data; boundary=b"})[0] in (400, 500)
    answers(own_root)
    answers(neighbour)


def test_a_fifo_that_is_full_does_not_hold_the_daemon(own_root):
    """Somebody has it open and reads nothing."""
    own_root.commands.run("exec 3<> /tmp/fifo; sleep 30", user="root", background=True, timeout=0)
    until("it is open", lambda: exit_code(own_root, "ls -l /proc/[0-9]*/fd/3 | grep -q fifo", user="root") == 0)
    assert write(own_root, "/tmp/fifo", b"x" * 300_000) in (400, 500)
    answers(own_root)


def test_accounts_in_a_fifo_do_not_hold_the_daemon(own, neighbour):
    """The daemon reads /etc/passwd for every command. Here it waits for ever, there it never ends."""
    sandbox = own()
    back = "(sleep 4; rm /etc/passwd; cp /tmp/passwd /etc/passwd) > /dev/null 2>&1 &"
    for instead in ("mkfifo /etc/passwd", "ln -s /dev/zero /etc/passwd"):
        sandbox.commands.run(f"cp /etc/passwd /tmp/passwd; rm /etc/passwd; {instead}; {back}", user="root")
        started = time.monotonic()
        assert not works(sandbox)
        assert ask(sandbox, "/health")[0] == 204
        assert time.monotonic() - started < SOON
        until("the accounts are back", lambda: works(sandbox), 20)
    answers(neighbour)


def works(sandbox: Sandbox) -> bool:
    try:
        return sandbox.commands.run("echo back", timeout=SOON).stdout == "back\n"
    except (SandboxException, AuthenticationException):
        return False


def test_devices_have_no_end_but_do_no_harm(own, server):
    """An endless file costs no memory here and none there, and stops when its reader does."""
    sandbox = own()
    agent = agent_of(on_host(sandbox))
    for path in ("/dev/zero", "/proc/kmsg", "/dev/full", "/dev/tty", "/dev/ptmx", "/dev/stdin"):
        connection = http.client.HTTPConnection(*address(sandbox), timeout=SOON)
        connection.request("GET", f"/files?username=root&path={path}", headers=headers_of(sandbox))
        answer = connection.getresponse()
        if path in ("/dev/zero", "/dev/full"):
            assert answer.status == 200
            for _ in range(64):
                assert len(answer.read(MIB)) == MIB
        assert max(rss(agent), rss(server.front())) < 150 * MIB
        connection.close()
        answers(sandbox)
    assert write(sandbox, "/dev/full") == 507
    assert write(sandbox, "/dev/null", b"x" * MIB) == 200


def test_a_link_that_changes_while_it_is_read(own, canary):
    """From the file to everywhere and back, as fast as it goes."""
    sandbox = own()
    swap = f"cd /tmp; echo mine > mine; while :; do ln -sfn mine it; ln -sfn {canary} it; ln -sfn / it; ln -sfn /proc/1/root{canary} it; done"
    sandbox.commands.run(swap, user="root", background=True, timeout=0)
    until("it swaps", lambda: exit_code(sandbox, "test -L /tmp/it") == 0)
    seen, end = set(), time.monotonic() + 4
    while time.monotonic() < end:
        status, body = read(sandbox, "/tmp/it")
        assert status in (200, 400, 404, 500), (status, body)
        if status == 200:
            seen.add(body)
        write(sandbox, "/tmp/it/swapped")
        sandbox.files.exists("/tmp/it")
    assert seen <= {b"mine\n", b"written"} and seen
    assert not os.path.exists("/swapped")
    answers(sandbox)


def test_hard_links_lead_to_ones_own_files_only(own_root):
    for target in ("/usr/lib/soulbox/envd", "/proc/1/environ", "/dev/pts/ptmx", "/sys/kernel/uevent_seqnum"):
        assert exit_code(own_root, f"ln {target} /tmp/hard", user="root") != 0, target
    assert own_root.commands.run("ln /etc/hostname /tmp/hard && cat /tmp/hard", user="root").stdout == "e2b.local\n"
    assert write(own_root, "/usr/lib/soulbox/envd") == 500
    assert write(own_root, "/tmp/../usr/lib/soulbox/other") == 500


def test_removing_everything_removes_nothing_outside(own, neighbour, canary):
    """Root of its own file system may empty it. The layers below are everybody's."""
    sandbox = own()
    with pytest.raises(SandboxException):
        sandbox.files.remove("/", user="root", request_timeout=60)
    assert ask(sandbox, "/files?path=/usr/bin/env")[0] in (401, 404, 500), "the control: much is gone"
    assert neighbour.files.exists("/usr/share/doc") and neighbour.files.exists("/etc/passwd")
    with Sandbox.create("base", timeout=60) as fresh:
        assert fresh.files.exists("/home/user/.bashrc") and fresh.files.exists("/usr/share/doc")
        assert fresh.commands.run("python3 -c 'print(1)'").stdout == "1\n"


# --- bodies ------------------------------------------------------------------------------------------------------


def raw(sandbox: Sandbox, head: str, *parts: bytes, finish: bool = False) -> bytes:
    """Sends what is given and returns what comes until the peer ends or `SOON` is over."""
    with socket.create_connection(address(sandbox), timeout=SOON) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers_of(sandbox).items())
        connection.sendall(f"{head}\r\nHost: x\r\n{lines}".encode())
        try:
            for part in parts:
                connection.sendall(part)
            if finish:
                # A peer that has refused and closed by now leaves nothing to shut down.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            said = b""
            while piece := connection.recv(65536):
                said += piece
            return said
        except (TimeoutError, ConnectionError):
            return said if "said" in locals() else b""


UPLOAD = "POST /files?username=root&path=/tmp/lied HTTP/1.1\r\nContent-Type: application/octet-stream"


def test_lengths_that_lie(own_root):
    """A body shorter than promised is an error and no file that looks whole; bytes behind a body are no request."""
    short = raw(own_root, UPLOAD, b"Content-Length: 1000\r\n\r\n", b"short", finish=True)
    assert not short.startswith(b"HTTP/1.1 200")
    for length in (b"-1", b"99999999999999999999999", b"5, 6", b"0x5", b"5\r\nContent-Length: 6", b"+5"):
        said = raw(own_root, UPLOAD, b"Content-Length: " + length + b"\r\n\r\n", b"short")
        assert said.startswith(b"HTTP/1.1 4"), (length, said[:60])
    # A request smuggled behind the body must not be answered as one of ours: it has no token.
    smuggled = b"GET /files?username=root&path=/etc/shadow HTTP/1.1\r\nHost: x\r\n\r\n"
    for head in (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"Transfer-Encoding: chunked, identity\r\n\r\n", b"Transfer-Encoding: xchunked\r\n\r\n"):
        said = raw(own_root, UPLOAD, head, b"0\r\n\r\n" + smuggled, finish=True)
        assert b"root:" not in said
    answers(own_root)


def test_a_body_that_never_comes_holds_nobody(own_root, neighbour):
    waiting = []
    for _ in range(50):
        connection = socket.create_connection(address(own_root), timeout=SOON)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers_of(own_root).items())
        connection.sendall(f"{UPLOAD}\r\nHost: x\r\n{lines}Content-Length: 1000000\r\n\r\nx".encode())
        waiting.append(connection)
    answers(own_root)
    answers(neighbour)
    for connection in waiting:
        connection.close()
    answers(own_root)


def test_a_gzip_bomb_fills_its_own_disk_only(own, server, neighbour):
    """1 GiB of zeros in 1 MiB: expanded piece by piece, to the quota, and no further."""
    sandbox = own(diskSizeMB=128)
    agent = agent_of(on_host(sandbox))
    bomb = gzip.compress(gzip.compress(bytes(64 * MIB), 9) * 1, 9)
    layers = gzip.compress(bytes(64 * MIB), 9)
    once = layers * 16  # members of one stream: each is expanded
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, rss(agent), rss(server.front()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        kind = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
        assert ask(sandbox, "/files?path=/tmp/x", "POST", once[: len(layers) // 2], **kind)[0] == 400
        assert ask(sandbox, "/files?path=/tmp/x", "POST", b"no gzip", **kind)[0] == 400
        status, body = ask_slowly(sandbox, "/files?username=root&path=/tmp/bomb", once, kind)
        # btrfs compresses nothing here: zeros take their room, and the quota ends it.
        assert status == 507, (status, body)
        status, _ = ask_slowly(sandbox, "/files?username=root&path=/dev/null", once, kind)
        assert status == 200
        status, _ = ask_slowly(sandbox, "/files?username=root&path=/tmp/nested", bomb, kind)
        assert status in (200, 507)
    finally:
        done.set()
        watching.join()
    assert peak < 100 * MIB, f"{peak // MIB} MiB"
    answers(sandbox)
    answers(neighbour)


def ask_slowly(sandbox: Sandbox, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address(sandbox), timeout=60)
    try:
        connection.request("POST", target, body, headers_of(sandbox) | headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_million_parts(own, server, neighbour):
    """Of one form: skipped or refused, in bounded memory, while others are answered."""
    sandbox = own()
    agent = agent_of(on_host(sandbox))
    part = b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\n\r\n'
    form = part * 1_000_000 + b"--b--\r\n"
    answered: list[tuple[int, bytes]] = []
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    sending = threading.Thread(target=lambda: answered.append(ask_slowly(sandbox, "/files?username=root", form, kind)))
    started = time.monotonic()
    sending.start()
    peak = longest = 0
    while sending.is_alive():
        before = time.monotonic()
        answers(sandbox)
        longest = max(longest, time.monotonic() - before)
        peak = max(peak, rss(agent), rss(server.front()))
    sending.join()
    took = time.monotonic() - started
    assert answered and answered[0][0] in (200, 400, 413), answered
    assert peak < 100 * MIB, f"{peak // MIB} MiB"
    print(f"a million parts in {took:.1f} s, the slowest command beside it {longest:.2f} s")
    answers(neighbour)
    # The same with names that are files: a form has a bounded number of them.
    files = b"".join(b'--b\r\nContent-Disposition: form-data; name="file"; filename="/tmp/m/%d"\r\n\r\nx\r\n' % i for i in range(20_000)) + b"--b--\r\n"
    status, body = ask_slowly(sandbox, "/files?username=root", files, kind)
    assert status in (200, 400, 413), body[:200]
    assert max(rss(agent), rss(server.front())) < 100 * MIB
    answers(sandbox)


@pytest.mark.parametrize("form", [
    b"",
    b"--b",
    b"--b--",
    b"--b\r\n\r\n--b--\r\n",
    b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\nx\r\n--b--\r\n',
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nnever ends',
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + b"a" * 70000 + b'"\r\n\r\nx\r\n--b--\r\n',
    b"--b\r\n" + b"X: y\r\n" * 5000 + b"\r\nx\r\n--b--\r\n",
    b"--b\r\nX" + b"y" * 1_000_000,
])  # fmt: skip
def test_broken_forms(own_root, form):
    status, body = ask(own_root, "/files?username=root", "POST", form, **{"Content-Type": "multipart/form-data; boundary=b"})
    assert status in (200, 400, 413, 500), body[:200]
    answers(own_root)


def test_not_found_is_still_said(own_root):
    """The control of the refusals above."""
    with pytest.raises(NotFoundException):
        own_root.files.read("/nowhere")
    assert own_root.files.write("/tmp/here", "x").path == "/tmp/here"
    assert read(own_root, "/tmp/here") == (200, b"x")
