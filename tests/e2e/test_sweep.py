"""`soulbox doctor --sweep`: what a crashed server has left is shown and removed; what only looks like it stays."""

import json
import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

from conftest import DATA, Server, run, until
from e2b import Sandbox
from footprint import GROUPS, instance, status

KINDS = {
    "sandbox", "process", "network-namespace", "interface", "table", "table-elements", "address", "cgroup", "subvolume", "mount",
    "loop-device",
}  # fmt: skip


def sweep(*flags: str, data: Path = DATA) -> dict:
    said = run("doctor", "--sweep", "--json", *flags, "--data-dir", str(data))
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def names(report: dict, kind: str) -> list[str]:
    return [found["name"] for found in report["leftovers"] if found["kind"] == kind]


def crash(server: Server) -> None:
    """The server and its front, at once; sandboxes and their programs go on."""
    front = server.front()
    server.process.send_signal(signal.SIGKILL)
    os.kill(front, signal.SIGKILL)
    server.process.wait(10)
    until("the front is gone", lambda: not os.path.exists(f"/proc/{front}"))


def runs(pid: int) -> bool:
    # Whoever inherited it may still have to reap it.
    try:
        return status(pid)["State"][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Foreign:
    """Objects of somebody else's, with names that are nearly ours."""

    def __init__(self, stack: ExitStack, number: int, data: Path) -> None:
        self.interfaces = [f"sb{number}-x", f"sb{number}-07", f"xsb{number}-1"]
        for name in self.interfaces:
            call("ip", "link", "add", name, "type", "veth", "peer", "name", f"p{name}"[:15])
            stack.callback(call, "ip", "link", "delete", name)
        self.tables = [f"soulbox_{number}x", f"soulbox_0{number}"]
        for name in self.tables:
            call("nft", "add", "table", "ip", name)
            stack.callback(call, "nft", "delete", "table", "ip", name)
        hierarchy = next(path for path in (GROUPS / "memory", GROUPS) if (path / f"soulbox-{number}").is_dir())
        self.cgroups = [hierarchy / f"soulbox-{number}x", hierarchy / f"soulbox-{number}/07"]
        for path in self.cgroups:
            path.mkdir()
            stack.callback(path.rmdir)
        self.process = subprocess.Popen(["sleep", "600"])
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)
        (self.cgroups[0] / "cgroup.procs").write_text(str(self.process.pid))
        self.image = Path(f"{data}-other/pool.img")
        self.image.parent.mkdir()
        stack.callback(self.image.parent.rmdir)
        self.image.write_bytes(bytes(1 << 20))
        stack.callback(self.image.unlink)
        self.device = call("losetup", "--find", "--show", str(self.image)).strip()
        stack.callback(call, "losetup", "--detach", self.device)
        self.mount = Path(f"{data}-other/pool")
        self.mount.mkdir()
        stack.callback(self.mount.rmdir)
        call("mount", "-t", "tmpfs", "soulbox-e2e", str(self.mount))
        stack.callback(call, "umount", str(self.mount))

    def check(self) -> None:
        for name in self.interfaces:
            assert Path(f"/sys/class/net/{name}").exists(), name
        assert {f"table ip {name}" for name in self.tables} <= set(call("nft", "list", "tables").splitlines())
        assert all(path.is_dir() for path in self.cgroups)
        assert self.process.poll() is None
        assert Path(f"/sys/block/{Path(self.device).name}/loop/backing_file").read_text().strip() == str(self.image)
        assert os.path.ismount(self.mount)


def test_a_crashed_server_is_swept():
    # The cgroup of an installation goes with its last child, and one of the foreign ones lies in it.
    with ExitStack() as foreign:
        server = Server()
        try:
            server.start("--warm", "2", "--parked", "1")
            number = instance(DATA)
            other = Foreign(foreign, number, DATA)
            open_one = Sandbox.create("base", timeout=600)
            closed = Sandbox.create("base", timeout=600, network={"deny_out": ["8.8.0.0/16"]})
            for sandbox in (open_one, closed):
                sandbox.commands.run("nohup sleep 4567 > /dev/null 2>&1 &")

            refused = run("doctor", "--sweep", "--yes", "--data-dir", str(DATA))
            assert refused.returncode == 1 and "another server uses data directory" in refused.stderr
            assert open_one.commands.run("echo unharmed").stdout == "unharmed\n"

            # Two sandboxes with three each, two made ahead with init and envd, and a parked launcher, which comes last.
            group = other.cgroups[1].parent
            until("the stock is full again", lambda: sum(len(it.read_text().split()) for it in group.glob("*/cgroup.procs")) >= 11)
            crash(server)
            until("parked launchers end with the server", lambda: len(names(sweep(), "interface")) <= 4)
            shown = sweep()
            assert {found["kind"] for found in shown["leftovers"]} == KINDS and not shown["removed"]
            assert set(names(shown, "sandbox")) == {open_one.sandbox_id, closed.sandbox_id}
            interfaces = {f"sb{number}-{found['detail'].removeprefix('slot ')}" for found in shown["leftovers"] if found["kind"] == "process"}
            assert interfaces == set(names(shown, "interface"))
            assert names(shown, "mount") == [str(DATA / "pool")]
            pids = [int(pid) for pid in names(shown, "process")]
            # Two sandboxes with init, envd and a program, and two that were made ahead.
            assert len(pids) == 2 * 3 + 2 * 2
            assert sweep() == shown, "a look changes nothing"
            text = run("doctor", "--sweep", "--data-dir", str(DATA))
            assert f"sandbox            {open_one.sandbox_id} (slot " in text.stdout and "soulbox serve takes the sandboxes over" in text.stdout

            assert sweep("--yes") == {"leftovers": [*shown["leftovers"]], "removed": True}
            left = sweep()["leftovers"]
            # The parent holds the foreign cgroup and so stays in that hierarchy; nothing else does.
            assert all(found["kind"] == "cgroup" and found["name"] == str(other.cgroups[1].parent) for found in left), left
            assert [pid for pid in pids if runs(pid)] == []
            assert set(os.listdir("/sys/class/net")).isdisjoint(interfaces)
            assert str(DATA / "pool") not in Path("/proc/mounts").read_text()
            other.check()

            # What is on disk is whole.
            server.start("--warm", "0", "--parked", "0")
            with Sandbox.create("base", timeout=60) as fresh:
                assert fresh.commands.run("echo new").stdout == "new\n"
        finally:
            server.end()


def test_without_leftovers(tmp_path):
    assert sweep("--yes", data=tmp_path) == {"leftovers": [], "removed": True}
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    said = run("doctor", "--sweep", "--data-dir", str(tmp_path / "absent"))
    assert said.returncode == 1 and "there is no data directory" in said.stderr
    said = run("doctor", "--yes", "--data-dir", str(tmp_path))
    assert said.returncode == 2 and "--sweep" in said.stderr
