"""A host is after many sandboxes as it was before them. SOULBOX_LEAK_CYCLES sandboxes (100; `make soak` takes 1,000)."""

import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Server, until
from e2b import Sandbox
from footprint import Footprint, Objects

CYCLES = int(os.environ.get("SOULBOX_LEAK_CYCLES", "100"))
AHEAD = 6
PARALLEL = 6

# Each leaves a sandbox in another state of work at its end.
LOADS = [
    "true",
    "head -c 20M /dev/urandom > /home/user/noise",
    "head -c 8M /dev/zero > /dev/shm/zeroes",
    "for i in $(seq 40); do sleep 600 & done",
    "(while :; do :; done) & (while :; do sleep 0.01; done) &",
    "python3 -c 'import socket, time; s = [socket.create_connection((\"127.0.0.1\", 49983)) for _ in range(50)]; time.sleep(600)' &",
    "sudo mkdir -p /root/deep/er && sudo touch /root/deep/er/file && sudo rm -r /root/deep",
]


def settled(server: Server) -> Objects:
    """Waits until nothing but the slots made ahead is left."""
    last: list[str] = []

    def nothing_else() -> bool:
        last[:] = Objects.of(server.data).differences(AHEAD, set())
        return not last

    try:
        until("only the slots made ahead are left", nothing_else, 30)
    except AssertionError:
        raise AssertionError(f"left over: {last}") from None
    return Objects.of(server.data)


def with_load(number: int) -> None:
    with Sandbox.create("base", timeout=60) as sandbox:
        sandbox.commands.run("exec > /dev/null 2>&1 < /dev/null; " + LOADS[number % len(LOADS)], timeout=30)
        if number % 3 == 0:
            # A stream that is open when its sandbox ends.
            sandbox.commands.run("yes", background=True, timeout=0)
            sandbox.files.write("/tmp/file", b"x" * 100_000)


def with_lists(_: int) -> None:
    """Its ranges are elements in the sets of the host's rules."""
    with Sandbox.create("base", timeout=60, network={"deny_out": ["8.8.0.0/16", "9.9.9.9"], "allow_out": ["8.8.8.8"]}) as sandbox:
        sandbox.commands.run("true")


def forgotten(_: int) -> None:
    """Ends by its own deadline, which is far enough for a create on a host that has much to do."""
    Sandbox.create("base", timeout=3)


def ended_from_inside(_: int) -> None:
    sandbox = Sandbox.create("base", timeout=60)
    try:
        sandbox.commands.run("sudo pkill -9 -f envd", timeout=5)
    except Exception:  # whatever the package makes of its stream being reset
        pass


def abandoned(number: int) -> None:
    """A caller that goes away while its sandbox starts: it ends at once, or at its deadline when the answer was on its way already."""
    host, port = os.environ["E2B_API_URL"].removeprefix("http://").split(":")
    body = '{"templateID":"base","timeout":4}'
    request = (
        f"POST /sandboxes HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {os.environ['E2B_API_KEY']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request.encode())
        time.sleep(random.Random(number).choice([0, 0, 0.001, 0.002, 0.004, 0.008]))


KINDS = [with_load, with_lists, abandoned, with_load, abandoned, forgotten, with_load, ended_from_inside]


def cycle(number: int) -> None:
    KINDS[number % len(KINDS)](number)


@pytest.mark.timeout(60 + 4 * CYCLES)
def test_nothing_is_left_of_many_sandboxes():
    server = Server()
    try:
        server.start("--warm", str(AHEAD - 2), "--parked", "2")
        with ThreadPoolExecutor(PARALLEL) as pool:
            # Pools of threads, caches and allocators reach their size.
            list(pool.map(cycle, range(48)))
            settled(server)
            until("deleted uppers are gone", lambda: Footprint.of(server).deleted_uppers == 0, 60)
            before = Footprint.of(server)
            started = time.monotonic()
            list(pool.map(cycle, range(CYCLES)))
            took = time.monotonic() - started
        settled(server)
        last: list[str] = []

        def as_before() -> bool:
            last[:] = Footprint.of(server).grown(before)
            return not last

        try:
            # Idle threads of a pool and connections kept for reuse go after a while.
            until("the processes are as before", as_before, 30)
        except AssertionError:
            raise AssertionError(f"grown: {last}") from None
        after = Footprint.of(server)
        print(f"\n{CYCLES} sandboxes in {took:.1f} s\nbefore {before}\nafter  {after}")
    finally:
        server.end()
