"""What one sandbox wrote is in no other one, also in that which has its subvolume of the pool."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import Server, until
from e2b import Sandbox

AHEAD = 4


@pytest.fixture
def server():
    """With few slots ahead, so that a spare subvolume has its turn soon."""
    made = Server()
    try:
        yield made.start("--warm", str(AHEAD), "--parked", "1")
    finally:
        made.end()


def upper(server: Server, sandbox: Sandbox) -> Path:
    record = server.data / "host/sandboxes" / f"{sandbox.sandbox_id}.json"
    return server.data / "pool/uppers" / json.loads(record.read_text())["upper"]


def number(subvolume: Path) -> int:
    """Which the kernel gives once."""
    told = subprocess.run(["btrfs", "inspect-internal", "rootid", subvolume], check=True, capture_output=True, text=True)
    return int(told.stdout)


def test_an_emptied_upper_tells_nothing_of_its_first_sandbox(server):
    with Sandbox.create("base") as first:
        write = "echo secret > /home/user/of-the-first; ln -s /etc /tmp/of-the-first; mkdir -m 0 /tmp/of-the-first.d; sudo rm /etc/issue; sudo chmod 1777 /; sudo chown user /"
        first.commands.run(write)
        used, mine = upper(server, first), number(upper(server, first))
        # Else the slot that comes after its own takes the spare at once, and nobody sees it.
        until("the stock is full", lambda: len(list(used.parent.iterdir())) > AHEAD, 60)
    spare = server.data / "pool/spares" / used.name
    until("its upper is spare", lambda: spare.is_dir() and not used.exists(), 10)
    assert sorted(path.relative_to(spare).as_posix() for path in spare.rglob("*")) == ["u", "w"]

    sandboxes = []
    try:
        for _ in range(3 * AHEAD):
            sandboxes.append(Sandbox.create("base"))
            if number(upper(server, sandboxes[-1])) == mine:
                break
        else:
            raise AssertionError("the subvolume was not used again")
        run = sandboxes[-1].commands.run
        assert run("sudo find / -xdev -name 'of-the-first*'").stdout == ""
        assert run("stat -c '%a %U' / /etc/issue").stdout.split("\n")[:2] == ["755 root", "644 root"]
        assert run("cat /run/e2b/.E2B_SANDBOX_ID").stdout == sandboxes[-1].sandbox_id
    finally:
        for sandbox in sandboxes:
            sandbox.kill()


def test_slots_ahead_have_what_every_sandbox_is_given(server):
    """Nobody waits for it at a create: the folders are made, and what is different in each sandbox is not there yet."""

    def made() -> list[list[str]]:
        folders = (server.data / "pool/uppers").glob("*/u/run/e2b")
        return [sorted(path.name for path in folder.iterdir()) for folder in folders]

    until("the stock is full", lambda: len(made()) >= AHEAD, 60)
    assert all(names == [".E2B_SANDBOX"] for names in made())
    with Sandbox.create("base") as sandbox:
        names = sorted(path.name for path in (upper(server, sandbox) / "u/run/e2b").iterdir())
        assert names == [".E2B_SANDBOX", ".E2B_SANDBOX_ID", ".E2B_TEMPLATE_ID"]
        told = sandbox.commands.run("cat /run/e2b/.E2B_SANDBOX; ls -d /run/soulbox; stat -c '%a %U' /etc; wc -c < /etc/machine-id").stdout
        assert told == "true/run/soulbox\n755 root\n33\n"
