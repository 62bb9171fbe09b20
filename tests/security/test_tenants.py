"""Two tenants of one machine, one after the other and side by side: the second finds nothing of the first, and neither finds the host."""

import json
import os
import re
import secrets
import subprocess
from pathlib import Path

import pytest
from conftest import agents_inside, exit_code, on_host
from e2b import Sandbox
from server import Server, until


CANARY, SECRET = "CANARY_OF_THE_HOST", secrets.token_hex(16)


@pytest.fixture(scope="module")
def server():
    """With few slots ahead, and something in its environment that a sandbox could find."""
    made = Server()
    os.environ[CANARY] = SECRET
    try:
        yield made.start("--warm", "1", "--parked", "0")
    finally:
        made.end()
        del os.environ[CANARY]


# Leaves a mark in each place that could outlive a sandbox.
LEAVE = """
import ctypes, os, socket
mark = {mark!r}.encode()
for path in ('/tmp', '/dev/shm', '/var/tmp', '/home/user', '/run', '/root', '/etc', '/usr/lib'):
    with open(path + '/' + mark.decode(), 'wb') as file:
        file.write(mark * 4096)
        os.fsync(file.fileno())
    os.setxattr(path + '/' + mark.decode(), 'user.mark', mark)
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
shared = libc.shmget(0x5051, 1 << 16, 0o1666)
ctypes.memmove(libc.shmat(shared, None, 0), mark * 100, len(mark) * 100)
assert libc.msgget(0x5052, 0o1666) >= 0 and libc.semget(0x5053, 3, 0o1666) >= 0
assert libc.mq_open(b'/mark', 0o102, 0o666, None) >= 0
memory = bytearray(mark * (64 << 20 >> 5))
for end in range(3):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(mark, ('1.1.1.1', 7))
print('left')
"""

# What is there of it: files by name and content, memory that was never written, shared objects.
LOOK = """
import ctypes, mmap, os, subprocess
mark = {mark!r}.encode()
found = []
for top, directories, files in os.walk('/'):
    if top.startswith(('/proc', '/sys')):
        directories.clear()
        continue
    found += [os.path.join(top, name) for name in files if mark.decode() in name]
libc = ctypes.CDLL(None, use_errno=True)
for what, made in (('shm', libc.shmget(0x5051, 0, 0)), ('msg', libc.msgget(0x5052, 0)), ('sem', libc.semget(0x5053, 0, 0)), ('mq', libc.mq_open(b'/mark', 0))):
    if made >= 0: found.append(what)
# Pages and blocks that nobody wrote are zeros.
memory = mmap.mmap(-1, 64 << 20)
if mark in memory: found.append('memory')
with open('/tmp/sparse', 'wb+') as file:
    os.posix_fallocate(file.fileno(), 0, 64 << 20)
    for _ in range(64):
        if file.read(1 << 20).strip(b'\\0'): found.append('blocks')
seen = b''
for path in ('/proc/net/nf_conntrack', '/proc/net/tcp', '/proc/net/udp', '/proc/net/unix', '/proc/sysvipc/shm', '/proc/locks', '/proc/mounts', '/proc/net/arp'):
    try: seen += open(path, 'rb').read()
    except OSError: pass
if mark in seen: found.append('tables')
print(found)
"""


def run(sandbox: Sandbox, code: str, name: str) -> str:
    sandbox.files.write(f"/tmp/{name}", code)
    return sandbox.commands.run(f"python3 /tmp/{name}; rm -f /tmp/{name}", user="root", timeout=60).stdout


def test_the_next_tenant_finds_nothing(server):
    mark = secrets.token_hex(16)
    first = Sandbox.create("base", timeout=120)
    assert run(first, LEAVE.format(mark=mark), "leave.py") == "left\n"
    first.kill()
    for _ in range(2):
        with Sandbox.create("base", timeout=120) as second:
            assert run(second, LOOK.format(mark=mark), "look.py") == "[]\n"


def test_the_control_of_looking(server):
    """The same search, where the marks are."""
    mark = secrets.token_hex(16)
    with Sandbox.create("base", timeout=120) as sandbox:
        run(sandbox, LEAVE.format(mark=mark), "leave.py")
        found = run(sandbox, LOOK.format(mark=mark), "look.py")
        for expected in ("/dev/shm/", "/usr/lib/", "shm", "msg", "sem", "mq"):
            assert f"'{expected}" in found, (expected, found)


def test_nothing_of_a_dead_sandbox_is_in_the_tables_of_the_host(server):
    """conntrack and neighbours: an entry of the first would let answers to it reach the second, which has its address."""
    with Sandbox.create("base", timeout=120) as first:
        send = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('1.1.1.1', 7)); print(s.getsockname()[1])"
        first.commands.run(f'python3 -c "{send}"')
        interface = interface_of(first)
    until("its interface is gone", lambda: not Path(f"/sys/class/net/{interface}").exists())
    for command in (["ip", "neighbour"], ["ip", "route"], ["nft", "list", "ruleset"]):
        shown = lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout
        until(f"{command} has forgotten it", lambda: not re.search(rf"{interface}\b", shown()))


def interface_of(sandbox: Sandbox) -> str:
    """The host's end: its number is the one that eth0 names as its peer."""
    inside = sandbox.commands.run("cat /sys/class/net/eth0/iflink").stdout.strip()
    for path in Path("/sys/class/net").glob("sb*"):
        if (path / "ifindex").read_text().strip() == inside:
            return path.name
    raise AssertionError("the sandbox has no interface on the host")


# --- what is visible inside ------------------------------------------------------------------------------------------


def test_no_descriptor_is_inherited(server, sandbox):
    """Commands have their three, envd and init what they opened themselves; none leads out of the sandbox."""
    code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    for user in ("root", "user"):
        # The fourth is the listing itself.
        assert sandbox.commands.run(f'python3 -c "{code}"', user=user).stdout == "[0, 1, 2, 3]\n"
    terminal = sandbox.commands.run("script -qc 'ls /proc/self/fd | tr \"\\n\" \" \"' /dev/null").stdout
    assert terminal.split() == ["0", "1", "2", "3"]
    own = Path("/proc/self/ns")
    allowed = re.compile(r"^(socket|pipe|anon_inode):|^/dev/null$|^/proc/[0-9]+/|^/$|^/dev/ptmx$|^/dev/pts/")
    for envd in agents_inside(server):
        init = int(Path(f"/proc/{envd}/stat").read_text().rsplit(")", 1)[1].split()[1])
        for pid in (envd, init):
            opened = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert all(allowed.match(str(link)) for link in opened), opened
            for kind in ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup"):
                assert Path(f"/proc/{pid}/ns/{kind}").readlink() != (own / kind).readlink()


def test_unix_sockets_of_envd_lead_nowhere(server, sandbox):
    """Of its sockets, each is of the sandbox's own network: no copy of the agent's RPC or of its launch channel."""
    envd = agents_inside(server)[0]
    namespace = Path(f"/proc/{envd}/net")
    known = {line.split()[6] for line in (namespace / "unix").read_text().splitlines()[1:]}
    known |= {line.split()[9] for name in ("tcp", "tcp6", "udp", "udp6") for line in (namespace / name).read_text().splitlines()[1:]}
    for path in Path(f"/proc/{envd}/fd").iterdir():
        link = str(path.readlink())
        if link.startswith("socket:["):
            assert link[len("socket:[") : -1] in known, link


def test_the_environment_is_the_sandboxs(server, sandbox):
    """No variable of the server's, in any process."""
    everyone = "cat /proc/[0-9]*/environ 2> /dev/null | tr '\\0' '\\n' | cut -d = -f 1 | sort -u"
    assert f"{CANARY}={SECRET}" in Path(f"/proc/{server.process.pid}/environ").read_text(), "the control"
    names = set(sandbox.commands.run(everyone, user="root").stdout.split())
    assert "PATH" in names and CANARY not in names, names
    assert not {name for name in names if name.startswith(("SOULBOX", "CARGO", "RUST", "SSH"))}, names
    assert exit_code(sandbox, f"cat /proc/[0-9]*/environ 2> /dev/null | grep -qaF {SECRET[:16]}'{SECRET[16:]}'", user="root") == 1
    # Nobody inside can look into envd. It must have nothing even so.
    for envd in agents_inside(server):
        assert CANARY not in Path(f"/proc/{envd}/environ").read_text(), envd


def test_no_pointer_of_the_kernel(server, sandbox):
    """Whatever of /proc and /sys root inside can read: addresses of the kernel are zeros."""
    code = r"""
import os, re
kernel = re.compile(rb'\b(?:0x)?(ffff[89a-f][0-9a-f]{11})\b')
found = {}
for top in ('/proc/self', '/proc/net', '/proc/1', '/proc/sys', '/sys/kernel', '/sys/module', '/proc'):
    for directory, directories, files in os.walk(top):
        if top == '/proc': directories.clear()
        if directory.count('/') > 5 or '/task' in directory or 'map_files' in directory: directories.clear(); continue
        for name in files:
            path = os.path.join(directory, name)
            if name in ('kmsg', 'kcore', 'pagemap', 'mem', 'clear_refs', 'sysrq-trigger', 'smaps'): continue
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                data = os.read(descriptor, 1 << 18)
                os.close(descriptor)
            except OSError: continue
            for address in kernel.findall(data):
                # The page of vsyscall has the same address everywhere.
                if not address.startswith(b'ffffffffff'): found[path] = address
print(found)
"""
    assert run(sandbox, code, "pointers.py") == "{}\n"


def test_root_inside_is_nobody_outside(server, sandbox):
    """What root makes belongs on the host to an id without a name and without a file, and set-user-id bits stay on its own disk."""
    sandbox.commands.run("cp /bin/sleep /tmp/suid && chown root /tmp/suid && chmod 6755 /tmp/suid", user="root")
    process = on_host(sandbox, "root")
    owner = int(process.status()["Uid"].split()[0])
    assert str(owner) not in {line.split(":")[2] for line in Path("/etc/passwd").read_text().splitlines()}
    root = Path(f"/proc/{process.pid}/root/tmp/suid")
    assert root.stat().st_uid == owner and root.stat().st_mode & 0o6000
    # The pool is mounted so that the bit means nothing to the host. Its device nodes must work inside, and come from our own layer only.
    mounts = [line.split() for line in Path(f"/proc/{server.process.pid}/mountinfo").read_text().splitlines()]
    pool = next(fields for fields in mounts if fields[4] == str(server.data / "pool"))
    assert "nosuid" in pool[5].split(","), pool[5]


def test_usage_of_others_is_not_visible(server, sandbox):
    """No process, no mount, no interface and no cgroup but its own."""
    with Sandbox.create("base", timeout=120) as other:
        other.commands.run("exec -a somebody-elses sleep 60", background=True, timeout=0)
        assert sandbox.commands.run("ls /proc | grep -c '^[0-9]'", user="root").stdout.strip().isdigit()
        assert exit_code(sandbox, "cat /proc/*/cmdline | grep -qa somebody-else[s]", user="root") == 1
        links = json.loads(sandbox.commands.run("ip -j link").stdout)
        assert sorted(link["ifname"] for link in links) == ["eth0", "lo"]
        assert sandbox.commands.run("cut -d : -f 3 /proc/self/cgroup | sort -u").stdout in ("/\n", "/\n/init\n")
        shown = sandbox.commands.run("cat /proc/self/mountinfo /proc/1/mountinfo", user="root").stdout
        for word in (str(server.data), "soulbox-front", "loop", "/pool/", "/uppers/"):
            assert word not in shown, word
