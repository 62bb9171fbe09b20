"""Fixtures of the security suite: sandboxes as an attacker has them, and what the host sees of them.

Attacks run through the official package, as anybody's program would; the host is asked by reading /proc and the cgroups.
"""

import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2b import CommandExitException, Sandbox
from server import Server, until
from sized import create
from topology import topology

HERE = Path(__file__).parent


@dataclass
class Process:
    """A process of a sandbox as the host sees it."""

    pid: int

    def read(self, entry: str) -> str:
        return Path(f"/proc/{self.pid}/{entry}").read_text()

    def status(self) -> dict[str, str]:
        return status_fields(self.read("status"))

    def namespace(self, kind: str) -> str:
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def limit(self, controller: str, version_1: str, version_2: str) -> str:
        """The value of a file of its cgroup, by the name that the host's version of cgroups has for it."""
        for line in self.read("cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                mounted = Path("/sys/fs/cgroup") / controllers
                if not mounted.exists():
                    mounted = Path("/sys/fs/cgroup") / controller
                return (mounted / path.lstrip("/") / version_1).read_text().strip()
        path = next(line.split("::", 1)[1] for line in self.read("cgroup").splitlines() if line.startswith("0::"))
        return (Path("/sys/fs/cgroup") / path.lstrip("/") / version_2).read_text().strip()


def status_fields(text: str) -> dict[str, str]:
    return {name: value.strip() for name, value in (line.split(":", 1) for line in text.splitlines())}


def on_host(sandbox: Sandbox, user: str = "user") -> Process:
    """A process of the sandbox, just started, found on the host by a number that is nobody else's."""
    seconds = f"{10**6 + secrets.randbelow(10**6)}.{secrets.randbelow(10**6):06}"
    sandbox.commands.run(f"sleep {seconds}", user=user, background=True, timeout=0)
    found: list[int] = []

    def look() -> bool:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                    found.append(int(process.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return bool(found)

    until("the host sees the process", look)
    assert len(found) == 1
    return Process(found[0])


def agents_inside(server: Server) -> list[int]:
    """The envd processes of a server's slots, those made ahead among them: children of the inits, which are the server's."""
    below = lambda pid: [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    of_inits = [child for init in below(server.process.pid) for child in below(init)]
    return [pid for pid in of_inits if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/usr/lib/soulbox/envd\0")]


def exit_code(sandbox: Sandbox, command: str, **options) -> int:
    try:
        return sandbox.commands.run(command, **options).exit_code
    except CommandExitException as failure:
        return failure.exit_code


def run_file(sandbox: Sandbox, name: str, *arguments: str, user: str = "root") -> str:
    """Runs a Python file of this folder inside; its output."""
    sandbox.files.write(f"/tmp/{name}", (HERE / name).read_text())
    return sandbox.commands.run(" ".join(["python3", f"/tmp/{name}", *arguments]), user=user, timeout=60).stdout


@pytest.fixture(scope="module")
def net():
    """A network of namespaces for a server of its own; see topology.py."""
    with topology() as (made, stack):
        made.stack = stack
        yield made


@contextmanager
def server_within(net, *options: str):
    """On all addresses of its host, so that only the rules keep sandboxes out; what goes over 203.0.113.0/30 stays in the namespaces."""
    made = Server(within=net.host.enter, host="0.0.0.0")
    net.relay(net.stack, made.port)
    try:
        yield made.start("--insecure", *options)
    finally:
        made.end()


@pytest.fixture(scope="module")
def server():
    made = Server()
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture(scope="module")
def sandbox(server):
    """One sandbox for the tests of a module that leave no trace that matters."""
    with Sandbox.create("base", timeout=600) as made:
        yield made


@pytest.fixture
def own(server):
    """Makes sandboxes for this test alone: `own()`, or `own(memoryMB=256)`."""
    made = []

    def make(**limits) -> Sandbox:
        made.append(create(**limits) if limits else Sandbox.create("base", timeout=120))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def neighbour(server):
    """A sandbox beside the one that misbehaves. It must not notice, then or later."""
    with Sandbox.create("base", timeout=120) as made:
        made.files.write("/tmp/mark", "mine")
        yield made
        assert made.commands.run("cat /tmp/mark", timeout=10).stdout == "mine"
