"""SIGKILL of our processes at random moments of a mixed load: nothing that ran is lost, nothing that ended is left, and rows, kernel
objects and the API say the same afterwards.

SOULBOX_CRASH_ROUNDS rounds (5; `make soak` takes 30) of SOULBOX_CRASH_OPERATIONS operations each (200). A failure names its seed;
SOULBOX_CRASH_SEED repeats it as far as time allows.
"""

import itertools
import os
import random
import signal
import sqlite3
import threading
import time
from dataclasses import dataclass

import pytest
from conftest import Server, until
from e2b import Sandbox
from footprint import Objects

ROUNDS = int(os.environ.get("SOULBOX_CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("SOULBOX_CRASH_SEED", str(random.SystemRandom().randrange(10**6))))
OPERATIONS = int(os.environ.get("SOULBOX_CRASH_OPERATIONS", "200"))
WARM, PARKED = 4, 2


@dataclass
class Standing:
    """A sandbox that lives through all crashes, with a program that was started once and says so."""

    sandbox_id: str
    pid: int
    token: str

    @classmethod
    def make(cls, token: str) -> "Standing":
        sandbox = Sandbox.create("base", timeout=1200, network={"deny_out": ["8.8.0.0/16"]})
        sandbox.files.write("/tmp/mark", token)
        ticking = sandbox.commands.run(
            f"echo {token} >> /tmp/starts; while :; do echo {token}; sleep 0.1; done", background=True, timeout=0
        )
        return cls(sandbox.sandbox_id, ticking.pid, token)

    def check(self) -> None:
        sandbox = Sandbox.connect(self.sandbox_id)
        assert sandbox.files.read("/tmp/mark") == self.token
        assert sandbox.commands.run("cat /tmp/starts").stdout == f"{self.token}\n", "its program was started once"
        stream = sandbox.commands.connect(self.pid, timeout=20)
        for output, _, _ in stream:
            assert output is None or set(output.split()) <= {self.token}
            break
        else:
            raise AssertionError("its program has ended")
        stream.disconnect()


class Load:
    """Callers that create, use, list, extend and kill without a pause, and shrug at whatever goes wrong meanwhile; so many operations in all."""

    def __init__(self, callers: int, operations: int, seed: int) -> None:
        self.operations = operations
        self.begun = itertools.count(1)
        self.number = 0
        self.failed = 0
        self.killed: set[str] = set()
        self.threads = [
            threading.Thread(target=self.run, args=(random.Random(f"{seed}-{number}"),)) for number in range(callers)
        ]
        for thread in self.threads:
            thread.start()

    def operate(self, what, *arguments, **more):
        """One operation; false when there are no more."""
        number = next(self.begun)
        if number > self.operations:
            raise StopIteration
        self.number = number
        return what(*arguments, **more)

    def run(self, chance: random.Random) -> None:
        while True:
            try:
                # A caller whose server dies cannot kill it: then its deadline does.
                lists = {"network": {"deny_out": ["9.9.9.0/24"]}} if chance.random() < 0.2 else {}
                sandbox = self.operate(Sandbox.create, "base", timeout=5, request_timeout=5, **lists)
                for _ in range(chance.randrange(4)):
                    self.operate(
                        *chance.choice(
                            [
                                (sandbox.set_timeout, chance.randrange(4, 8)),
                                (sandbox.files.write, "/tmp/file", "x" * chance.randrange(100_000)),
                                (sandbox.commands.run, "head -c 300k /dev/urandom | sha256sum"),
                                (listed,),
                                (Sandbox.connect, sandbox.sandbox_id, 5),
                            ]
                        )
                    )
                if chance.random() < 0.75:
                    self.operate(sandbox.kill, request_timeout=5)
                    self.killed.add(sandbox.sandbox_id)
            except StopIteration:
                return
            except Exception:
                self.failed += 1
                time.sleep(0.02)

    def until(self, number: int) -> None:
        """Until so many operations have been begun."""
        until(f"{number} operations", lambda: self.number >= number, 60)

    def end(self) -> None:
        """Waits for the last operation."""
        for thread in self.threads:
            thread.join(90)
            assert not thread.is_alive(), "a caller hangs"


def listed() -> set[str]:
    pages, found = Sandbox.list(), set()
    while pages.has_next:
        found |= {info.sandbox_id for info in pages.next_items()}
    return found


def rows(server: Server) -> dict[str, str]:
    """What the database says of every sandbox that is not dead."""
    path = server.data / "control/control.db"
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return dict(database.execute("SELECT sandbox_id, state FROM sandboxes WHERE state <> 'dead'"))
    finally:
        database.close()


def agrees(server: Server, last: list[str]) -> bool:
    """Kernel objects and rows are those of the sandboxes that the API lists; of kernel objects there are the slots made ahead as well."""
    sandboxes = listed()
    last[:] = Objects.of(server.data).differences(WARM + PARKED, sandboxes)
    written = rows(server)
    if set(written) != sandboxes or set(written.values()) - {"running"}:
        last.append(f"rows: {written}, listed: {sandboxes}")
    return not last


def crash(server: Server, whom: str) -> None:
    front = server.front()
    if whom in ("agent", "both"):
        server.process.send_signal(signal.SIGKILL)
    if whom in ("front", "both") and front is not None:
        try:
            os.kill(front, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if whom != "front":
        server.process.wait(10)
        if front is not None:
            until("the front ends with its agent", lambda: not os.path.exists(f"/proc/{front}"), 5)
        start(server)
    else:
        until("a new front", lambda: server.front() not in (None, front) and server.answers(), 10)


def start(server: Server) -> None:
    started = time.monotonic()
    server.start("--warm", str(WARM), "--parked", str(PARKED))
    print(f" answers after {time.monotonic() - started:.2f} s", end="")


@pytest.mark.timeout(60 + 40 * ROUNDS)
def test_nothing_is_lost_or_left_when_our_processes_are_killed():
    print(f"\nseed {SEED}")
    chance = random.Random(SEED)
    server = Server()
    load = None
    try:
        start(server)
        standing = [Standing.make(f"standing-{number}") for number in range(3)]
        for number in range(ROUNDS):
            whom = ["agent", "front", "both"][number % 3] if number < 3 else chance.choice(["agent", "front", "both"])
            moment = chance.randrange(OPERATIONS // 20, OPERATIONS - OPERATIONS // 20)
            print(f"\nround {number}: {whom} after {moment} operations;", end="")
            load = Load(4, OPERATIONS, chance.randrange(10**6))
            forgotten = Sandbox.create("base", timeout=3)
            load.until(moment)
            killed = set(load.killed)
            crash(server, whom)
            load.end()
            print(f" {load.failed} of {OPERATIONS} failed;", end="")
            assert not killed & listed(), "what was killed before is back"
            for one in standing:
                one.check()
            assert listed() >= {one.sandbox_id for one in standing}
            # A new one works at once.
            with Sandbox.create("base", timeout=60) as fresh:
                assert fresh.commands.run("echo new").stdout == "new\n"
            until("a sandbox whose time is over is gone", lambda: not forgotten.is_running(), 10)
            last: list[str] = []
            try:
                took = until("kernel objects are those of the list", lambda: agrees(server, last), 20)
            except AssertionError:
                raise AssertionError(f"seed {SEED}, round {number} ({whom}): {last}") from None
            print(f" agreed after {took:.2f} s", end="")
        until("only the standing ones are left", lambda: listed() == {one.sandbox_id for one in standing}, 20)
        until("and their kernel objects", lambda: agrees(server, []), 20)
        print()
    finally:
        try:
            if load:
                load.end()
        finally:
            server.end()
