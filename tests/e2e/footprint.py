"""What a running server holds on its host, by the names that follow from its instance number, and whether that is all it should hold."""

import json
import re
import subprocess
from dataclasses import dataclass, field, fields
from pathlib import Path

from server import Server

CLAIMS = Path("/run/soulbox")
GROUPS = Path("/sys/fs/cgroup")


def instance(data: Path) -> int:
    """The number of the installation, which names its kernel objects."""
    for claim in CLAIMS.glob("instance-*"):
        if claim.read_text() == str(data):
            return int(claim.name.removeprefix("instance-"))
    raise AssertionError(f"no instance of this host belongs to {data}")


def descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def criu(server: Server) -> int | None:
    """The CRIU that works for the agent, the first of its processes."""
    for pid in sorted(descendants(server.process.pid)):
        try:
            # At work it calls itself `criu: dump` or `criu: restore`.
            if b"\0criu: " in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in text.splitlines())}


@dataclass
class Objects:
    """Kernel objects by slot number, and what else belongs to slots."""

    cgroups: dict[str, set[int]] = field(default_factory=dict)
    interfaces: set[int] = field(default_factory=set)
    addresses: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)
    uppers: list[str] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    pids: dict[int, set[int]] = field(default_factory=dict)
    network_namespaces: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: Path) -> "Objects":
        number = instance(data)
        found = cls()
        for hierarchy in sorted(GROUPS.iterdir()):
            group = hierarchy / f"soulbox-{number}"
            if not group.is_dir():
                continue
            found.cgroups[hierarchy.name] = {int(path.name) for path in group.iterdir() if path.is_dir()}
            for path in group.glob("*/cgroup.procs"):
                try:
                    found.pids.setdefault(int(path.parent.name), set()).update(map(int, path.read_text().split()))
                except (FileNotFoundError, OSError):
                    continue
        prefix = f"sb{number}-"
        found.interfaces = {int(p.name[len(prefix) :]) for p in Path("/sys/class/net").glob(f"{prefix}*")}
        listed = subprocess.run(["nft", "-j", "list", "table", "ip", f"soulbox_{number}"], capture_output=True, text=True)
        if listed.returncode == 0:
            for entry in json.loads(listed.stdout)["nftables"]:
                for elements in (entry.get(kind, {}) for kind in ("map", "set")):
                    into = found.addresses if elements.get("name") == "own" else found.open
                    into |= {int(slot) for slot in re.findall(rf"{prefix}(\d+)", json.dumps(elements.get("elem", [])))}
        found.uppers = sorted(path.name for path in (data / "pool/uppers").glob("*"))
        for path in (data / "host/sandboxes").glob("*"):
            try:
                record = json.loads(path.read_text())
                found.records[record["sandbox_id"]] = record["slot"]
            except FileNotFoundError:
                continue
            except json.JSONDecodeError:
                # Half of one, or what is left of it.
                found.records[path.name] = None
        for pid in set().union(*found.pids.values()):
            try:
                found.network_namespaces.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def slots(self) -> set[int]:
        return set(self.pids)

    def differences(self, ahead: int, sandboxes: set[str] | None = None) -> list[str]:
        """What is there and should not be, or the reverse; empty when all objects fit `sandboxes` and `ahead` slots made ahead."""
        slots = self.slots()
        wrong = [f"cgroup {name}: {found ^ slots}" for name, found in self.cgroups.items() if found != slots]
        wrong += [f"slot {slot} without a process" for slot, pids in self.pids.items() if not pids]
        for name, found in (("interfaces", self.interfaces), ("addresses", self.addresses)):
            if found != slots:
                wrong.append(f"{name}: {found ^ slots}")
        if len(self.network_namespaces) != len(slots):
            wrong.append(f"{len(self.network_namespaces)} network namespaces of {len(slots)} slots")
        if not self.open <= set(self.records.values()):
            wrong.append(f"egress of no sandbox: {self.open - set(self.records.values())}")
        owners = [int(name.split("-")[0]) for name in self.uppers]
        if len(set(owners)) != len(owners) or not set(owners) <= slots:
            wrong.append(f"uppers: {self.uppers}")
        if sandboxes is not None and set(self.records) != sandboxes:
            wrong.append(f"records: {set(self.records) ^ sandboxes}")
        if len(slots) != len(self.records) + ahead:
            wrong.append(f"{len(slots)} slots for {len(self.records)} sandboxes and {ahead} ahead")
        if not set(self.records.values()) <= slots:
            wrong.append(f"sandboxes without a slot: {self.records}")
        return wrong


@dataclass
class Process:
    """What a process of ours takes."""

    threads: int
    descriptors: int
    namespaces: int
    children: int
    zombies: int
    memory_kib: int

    @classmethod
    def of(cls, pid: int) -> "Process":
        links = []
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                links.append(str(path.readlink()))
            except FileNotFoundError:
                continue
        children, zombies = descendants(pid), 0
        for child in children:
            try:
                zombies += status(child)["State"].startswith("Z")
            except (FileNotFoundError, ProcessLookupError):
                continue
        return cls(
            threads=int(status(pid)["Threads"]),
            descriptors=len(links),
            namespaces=sum(link.startswith("net:") for link in links),
            children=len(children),
            zombies=zombies,
            memory_kib=int(status(pid)["VmRSS"].split()[0]),
        )


@dataclass
class Footprint:
    """All of it, in numbers that are the same before and after."""

    mounts: int
    loop_devices: int
    deleted_uppers: int
    agent: Process
    front: Process

    @classmethod
    def of(cls, server: Server) -> "Footprint":
        mounts = Path(f"/proc/{server.process.pid}/mountinfo").read_text().splitlines()
        backing = [p.read_text().strip() for p in Path("/sys/block").glob("loop*/loop/backing_file")]
        # The kernel removes deleted subvolumes after a commit, unless a mount still holds them.
        subprocess.run(["btrfs", "filesystem", "sync", str(server.data / "pool")], capture_output=True, check=True)
        deleted = subprocess.run(
            ["btrfs", "subvolume", "list", "-d", str(server.data / "pool")], capture_output=True, text=True, check=True
        )
        return cls(
            mounts=sum(str(server.data) in line for line in mounts),
            loop_devices=sum(str(server.data) in path for path in backing),
            deleted_uppers=len(deleted.stdout.splitlines()),
            agent=Process.of(server.process.pid),
            front=Process.of(server.front()),
        )

    def grown(self, before: "Footprint", connections: int = 0, idle_threads: int = 0) -> list[str]:
        """What is more than before. Descriptors and memory have some room: allocators keep what a burst needed, and so does the front's
        pool of so many `connections` to a database server. Of the agent's threads for work that blocks, `idle_threads` more may be there:
        there are as many as were busy at once, and as long as there is work every few seconds, each gets some and none ends.
        """
        found = [
            f"{name}: {getattr(before, name)} -> {getattr(self, name)}"
            for name in ("mounts", "loop_devices", "deleted_uppers")
            if getattr(self, name) > getattr(before, name)
        ]
        room = {"threads": 0, "descriptors": 4, "namespaces": 0, "children": 0, "zombies": 0, "memory_kib": 12 << 10}
        for who in ("agent", "front"):
            now, then = getattr(self, who), getattr(before, who)
            for entry in fields(Process):
                more = {("front", "descriptors"): connections, ("agent", "threads"): idle_threads}.get((who, entry.name), 0)
                if getattr(now, entry.name) > getattr(then, entry.name) + room[entry.name] + more:
                    found.append(f"{who}'s {entry.name}: {getattr(then, entry.name)} -> {getattr(now, entry.name)}")
        return found
