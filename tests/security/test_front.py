"""The half of the server that talks to the world, taken over: what its user and the process itself can reach of the host and of sandboxes."""

import errno
import glob
import json
import os
import socket
import stat
import subprocess
from pathlib import Path

from conftest import HERE, agents_inside, on_host
from held import Held
from server import BINARY

# `front_uid` of crates/soulbox-cli/src/settings.rs.
FRONT_UID = 61_357
REFUSED = {"EACCES", "EPERM", "ENOENT", "ESRCH", "ENXIO", "ENOTDIR"}


def as_front(*command: str, **more) -> subprocess.CompletedProcess:
    """A program as the front's user, without any privilege: what a shell of it would be."""
    become = ["setpriv", f"--reuid={FRONT_UID}", f"--regid={FRONT_UID}", "--clear-groups"]
    become += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]
    return subprocess.run([*become, *command], capture_output=True, text=True, timeout=30, cwd="/", **more)


def files_of(server) -> list[str]:
    """All that lies in the data dir, one level into the pool, and the database with its directory."""
    data = server.data
    found = [data, *data.glob("*"), *data.glob("host/*"), *data.glob("pool/*"), *data.glob("control/*")]
    found += [*data.glob("pool/layers/*"), *data.glob("pool/uppers/*"), *data.glob("pool/templates/*")]
    return sorted(str(path) for path in found)


def raw_devices() -> list[str]:
    devices = [path for path in glob.glob("/dev/*") if stat.S_ISBLK(os.stat(path).st_mode)]
    return devices + [path for path in ("/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/net/tun", "/dev/loop-control") if os.path.exists(path)]


def groups_of(pid: int) -> list[str]:
    """The control files of its cgroups, as the host has them."""
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in ("cgroup.procs", "tasks", "freezer.state", "cgroup.kill", "memory.limit_in_bytes", "memory.max"):
            found += glob.glob(f"/sys/fs/cgroup/*{controllers}*{path}/{name}") + glob.glob(f"/sys/fs/cgroup{path}/{name}")
    return sorted({path for path in found if "soulbox" in path})


def test_a_shell_of_its_user_reaches_nothing(server, sandbox):
    inside, front, agent = on_host(sandbox).pid, server.front(), server.process.pid
    init = int(on_host(sandbox).status()["NSpid"].split()[0])
    processes = [agent, front, inside, init]
    asked = {
        "read": [*files_of(server), *raw_devices(), "/proc/kcore", "/proc/kmsg", "/etc/shadow"],
        "write": [*files_of(server), *raw_devices(), *groups_of(inside), "/run/soulbox", *glob.glob("/run/soulbox/*"), BINARY, "/proc/sysrq-trigger"],
        "namespaces": [f"/proc/{pid}/ns/{kind}" for pid in processes for kind in ("mnt", "net", "user", "pid")],
        "processes": processes,
    }
    assert str(server.data / "secrets.json") in asked["read"] and len(groups_of(inside)) > 2
    attempts = (HERE / "intruder.py").read_text()
    control = json.loads(subprocess.run(["python3", "-c", attempts], input=json.dumps(asked), capture_output=True, text=True, timeout=30).stdout)
    outcomes = json.loads(as_front("/usr/bin/python3", "-c", attempts, input=json.dumps(asked)).stdout)
    assert set(outcomes) == set(control)
    # Whoever may: root of the host, and only of that which is there.
    assert sum(outcome == "done" for outcome in control.values()) > len(control) // 2, control
    succeeded = {what: outcome for what, outcome in outcomes.items() if outcome not in REFUSED}
    # A process of the same user may be signalled: it is its own, and is replaced when it ends.
    assert set(succeeded) <= {f"signal {front}", f"read the limits of {front}"}, succeeded


def test_commands_of_the_binary_are_not_for_its_user(server, sandbox, tmp_path_factory):
    """The same program, run by the front's user: it must not find the key, nor clean up sandboxes, nor serve."""
    key = os.environ["E2B_API_KEY"]
    for command in (["env"], ["clean"], ["serve", "--listen", "127.0.0.1:0"], ["template", "list", "--local"], ["doctor"]):
        finished = as_front(BINARY, *command, "--data-dir", str(server.data))
        assert finished.returncode != 0, command
        assert key not in finished.stdout + finished.stderr
    assert sandbox.commands.run("echo unharmed").stdout == "unharmed\n"


def slot_addresses(server) -> list[str]:
    """The addresses of this installation's slots: the host has a route to each."""
    from_instance = [path for path in Path("/run/soulbox").glob("instance-*") if path.read_text() == str(server.data)]
    prefix = f"sb{from_instance[0].name.removeprefix('instance-')}-"
    routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, text=True, check=True).stdout)
    return [route["dst"] for route in routes if route.get("dev", "").startswith(prefix)]


# Asks an envd without a token: address, way and what it answered, or `none`.
WITHOUT_TOKEN = """
import json, sys, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
WAYS = (
    ("/process.Process/List", {}), ("/filesystem.Filesystem/ListDir", {"path": "/"}), ("/files?path=/etc/passwd", None),
    ("/files?path=/etc/passwd&username=root&signature=x", None), ("/init", {"accessToken": "mine"}), ("/metrics", None), ("/envs", None),
)
def ask(way):
    address, (path, body) = way
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}:49983{path}", data, {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=2).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return "none"
with ThreadPoolExecutor(256) as pool:
    ways = [(address, way) for address in sys.argv[1:] for way in WAYS]
    for (address, (path, _)), answer in zip(ways, pool.map(ask, ways)):
        print(address, path, answer)
"""


def answers(text: str) -> list[str]:
    return [line.split()[-1] for line in text.splitlines()]


def test_no_way_into_a_sandbox_past_the_agent(server, sandbox):
    """The host has a route to each slot, those made ahead among them, for the agent's use; nobody else gets an answer by it."""
    addresses = slot_addresses(server)
    assert len(addresses) > 1, "sandboxes and slots made ahead"
    said = answers(as_front("/usr/bin/python3", "-c", WITHOUT_TOKEN, *addresses).stdout)
    assert len(said) >= 7 * len(addresses) and set(said) == {"none"}, said


def test_an_agent_that_nobody_has_claimed_takes_no_orders(server, sandbox):
    """A slot made ahead has an envd without a token yet. Who could reach it must not be able to prepare somebody's sandbox."""
    envds = agents_inside(server)
    assert len(envds) > 1, "the sandbox's and one made ahead"
    # The sandbox's is among the first, those made last are among the last.
    for pid in {*envds[:2], *envds[-2:]}:
        enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "python3", "-c", WITHOUT_TOKEN, "127.0.0.1"]
        said = answers(subprocess.run(enter, capture_output=True, text=True, timeout=30).stdout)
        assert said == ["401"] * 7, (pid, said)
    assert sandbox.commands.run("echo mine still").stdout == "mine still\n"


# Number, arguments, what it must come to. Made by the front itself, as an intruder in it would.
def confined_attempts(agent: int, inside: int) -> list[tuple[str, int, tuple, set[str]]]:
    refused, absent, alone = {"EPERM"}, {"ENOENT"}, {"EPERM", "ESRCH"}
    openat, at, path = 257, -100 & 0xFFFFFFFF, os.O_PATH | os.O_DIRECTORY
    socket_address = bytes([2, 0, 0, 80]) + socket.inet_aton("127.0.0.1") + bytes(8)
    return [
        *[(f"open {name.decode()}", openat, (at, name, 0, 0), absent) for name in (
            b"/proc/self/mem", b"/proc/1/root", b"/dev/null", b"/etc/passwd", b"/bin/sh", b"/data/../etc/passwd", b"../secrets.json", b"/../../etc",
        )],
        ("make a file in the root", openat, (at, b"/x", os.O_CREAT | os.O_WRONLY, 0o777), {"EROFS"}),
        ("run a program", 59, (b"/data/control.db", 0, 0), refused),
        ("run a descriptor", 322, (0, b"", 0, 0, 0x1000), refused),
        ("make a socket", 41, (2, 1, 0), refused),
        ("make a unix socket", 41, (1, 1, 0), refused),
        ("connect", 42, (0, socket_address, 16), refused),
        ("fork", 57, (), refused),
        ("clone a namespace", 56, (0x10000000 | 17, 0, 0, 0, 0), refused),
        ("unshare", 272, (0x10000000,), refused),
        ("mount", 165, (b"none", b"/data", b"tmpfs", 0, 0), refused),
        ("unmount", 166, (b"/data", 2), refused),
        ("change the root", 161, (b"/data",), refused),
        ("open a tree", 428, (at, b"/", 1), refused),
        ("trace the agent", 101, (16, agent, 0, 0), refused),
        ("trace a sandbox", 101, (16, inside, 0, 0), refused),
        ("read the agent's memory", 310, (agent, 0, 0, 0, 0, 0), refused),
        ("take the agent's descriptor", 438, (0, 0, 0), refused),
        ("open the agent", 434, (agent, 0), refused),
        ("kill the agent", 62, (agent, 9), alone),
        ("kill a sandbox", 62, (inside, 9), alone),
        ("become root", 105, (0,), refused),
        ("become a group", 116, (1, bytes(4)), refused),
        ("make a device", 133, (b"/data/disk", 0o60600, os.makedev(8, 0)), refused),
        ("make a device there", 259, (at, b"/data/disk", 0o60600, os.makedev(8, 0)), refused),
        ("open by handle", 304, (0, bytes(16), 0), refused),
        ("load a program into the kernel", 321, (0, bytes(64), 64), refused),
        ("ring", 425, (8, bytes(120)), refused),
        ("keys", 250, (0, -3, 1), refused),
        ("the x32 way", 0x40000000 | 41, (2, 1, 0), {"EPERM", "ENOSYS"}),
    ]


def test_the_process_itself_reaches_nothing(server, sandbox):
    front, inside = server.front(), on_host(sandbox).pid
    with Held(front) as held:
        assert held.call(102) == FRONT_UID, "the control: getuid"
        opened = held.call(257, -100, b"/data", os.O_RDONLY | os.O_DIRECTORY, 0)
        assert opened >= 0, "the control: its own directory"
        assert held.call(3, opened) == 0
        outcomes = {}
        for what, number, arguments, expected in confined_attempts(server.process.pid, inside):
            result = held.call(number, *arguments)
            outcome = errno.errorcode.get(-result, "done") if result < 0 else "done"
            if outcome not in expected:
                outcomes[what] = outcome
    assert outcomes == {}
    assert server.front() == front
    assert sandbox.commands.run("echo as before").stdout == "as before\n"


def test_it_is_the_only_one_that_sees_the_database(server):
    """0700 of its user: no other user of the host opens it, and what it opens is there only."""
    control = server.data / "control"
    assert control.stat().st_uid == FRONT_UID and not control.stat().st_mode & 0o077
    opened = [os.readlink(path) for path in Path(f"/proc/{server.front()}/fd").iterdir()]
    files = [name for name in opened if name.startswith("/") and not name.startswith("/dev/") and name != str(server.log)]
    assert files and all(name.startswith("/data/") for name in files), files
