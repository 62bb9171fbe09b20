"""Things of the kernel that all sandboxes of a host share: none of them runs out because one sandbox takes all it can get."""

import json
import threading
import time
from pathlib import Path

import pytest
from conftest import exit_code, on_host
from e2b import CommandExitException, Sandbox
from server import until
from test_limits import answers


def take(sandbox: Sandbox, code: str, user: str = "root", timeout: int = 60) -> str:
    """Runs code that takes something until it is refused, says how much it got, and holds it for a while."""
    sandbox.files.write("/tmp/take.py", code)
    running = sandbox.commands.run("python3 /tmp/take.py", user=user, background=True, timeout=timeout)
    said = next((out for out, _, _ in running if out), "")
    assert said, "it said nothing"
    return said.strip()


DESCRIPTORS = """
import errno, os, resource, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
try: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
except (ValueError, OSError): resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
children, total = [], 0
for _ in range(20):
    read, write = os.pipe()
    if os.fork() == 0:
        made, why = 0, ''
        try:
            while made < 100_000:
                os.open('/dev/null', os.O_RDONLY)
                made += 1
        except OSError as error: why = errno.errorcode[error.errno]
        os.close(0)
        os.write(write, f'{made} {why}'.encode())
        time.sleep(8)
        os._exit(0)
    os.close(write)
    children.append(read)
counts = [os.read(read, 100).decode() for read in children]
print(sum(int(count.split()[0]) for count in counts), counts[0], flush=True)
time.sleep(6)
"""


def test_descriptors(own, neighbour, server):
    """Each process has its limit, and their number has one. The table of the host is far larger."""
    taken, first, *_ = take(own(), DESCRIPTORS).split()
    assert int(taken) > 100_000, "the control: it took many"
    in_use, _, most = map(int, Path("/proc/sys/fs/file-nr").read_text().split())
    assert int(first) <= 1 << 20 and in_use < most // 2
    assert answers(neighbour)
    assert server.answers()
    with Sandbox.create("base", timeout=60) as another:
        assert answers(another)


SOCKETS = """
import errno, os, socket, time
made, why, held = 0, '', []
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
try:
    while made < 200_000:
        pair = socket.socketpair()
        pair[0].setblocking(False)
        try:
            for _ in range(4): pair[0].send(b'x' * 32768)
        except BlockingIOError: pass
        held.append(pair)
        made += 1
except OSError as error: why = errno.errorcode[error.errno]
print(made, why, flush=True)
time.sleep(6)
"""


def test_sockets_and_their_buffers(own, neighbour):
    """Buffers are memory of the sandbox: full ones end at its limit, not at the host's."""
    sandbox = own(memoryMB=256)
    before = free_memory()
    try:
        take(sandbox, SOCKETS)
    except (AssertionError, CommandExitException):
        pass  # the kernel ended it: that is its limit
    assert before - free_memory() < 1 << 20, "in KiB"
    until("it answers", lambda: answers(sandbox, 10), 20)
    assert answers(neighbour)


def free_memory() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0])


WATCHES = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
made = 0
os.makedirs('/tmp/w', exist_ok=True)
notify = libc.inotify_init1(0)
while made < 100_000:
    path = b'/tmp/w/%d' % made
    if made % 1 == 0: os.mkdir(path)
    if libc.inotify_add_watch(notify, path, 2) < 0: break
    made += 1
print(made, ctypes.get_errno(), flush=True)
time.sleep(6)
"""


def test_inotify_watches_are_a_share(own, neighbour):
    made, errno = take(own(), WATCHES, timeout=90).split()
    assert 60_000 < int(made) <= 65_536 and int(errno) == 28  # ENOSPC
    one = "import ctypes; l = ctypes.CDLL(None); print(l.inotify_add_watch(l.inotify_init1(0), b'/tmp', 2))"
    assert int(neighbour.commands.run(f'python3 -c "{one}"').stdout) >= 1


PORTS = """
import errno, socket, time, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held, why = [], ''
try:
    while True:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(('0.0.0.0', 0))
        held.append(made)
except OSError as error: why = errno.errorcode[error.errno]
print(len(held), why, flush=True)
time.sleep(6)
"""


def test_ports_are_its_own(own, neighbour):
    """All of them taken: the neighbour's and the host's are others."""
    sandbox = own()
    taken, why = take(sandbox, PORTS).split()
    assert int(taken) > 10_000 and why in ("EADDRINUSE", "EMFILE", "ENOBUFS", "ENOMEM")
    bind = "import socket; s = [socket.socket() for _ in range(100)]; [x.bind(('0.0.0.0', 0)) for x in s]; print(len(s))"
    assert neighbour.commands.run(f'python3 -c "{bind}"').stdout == "100\n"
    # Files and commands need none of its ports.
    assert answers(sandbox, 10)


SYSTEM_V = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
made = {}
for what, make in (('shm', lambda: libc.shmget(0, 4096, 0o600)), ('sem', lambda: libc.semget(0, 100, 0o600)), ('msg', lambda: libc.msgget(0, 0o600)),
                   ('keyring', lambda: libc.syscall(248, b'user', b'x', b'x', 1, -3)), ('timer', None), ('lock', None)):
    if make is None: continue
    count = 0
    while count < 50_000 and make() >= 0: count += 1
    made[what] = (count, ctypes.get_errno())
import json
print(json.dumps(made), flush=True)
time.sleep(4)
"""


def test_system_v_objects_are_its_own(own, neighbour):
    said = json.loads(take(own(), SYSTEM_V))
    assert said["shm"][0] > 1000 and said["keyring"] == [0, 1]
    code = "import ctypes; l = ctypes.CDLL(None); print(min(l.shmget(0, 4096, 0o600), l.semget(0, 1, 0o600), l.msgget(0, 0o600)) >= 0)"
    assert neighbour.commands.run(f'python3 -c "{code}"').stdout == "True\n"


TERMINALS = """
import os, resource, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held, why = [], ''
try:
    while len(held) < 5000: held.append(os.open('/dev/ptmx', os.O_RDWR))
except OSError as error: why = error.strerror
print(len(held), why, flush=True)
time.sleep(5)
"""


def test_terminals_are_a_share(own, neighbour):
    """The kernel counts those of all sandboxes together, 4096 where nobody raised it: one had 3071, and nobody else any."""
    for sandbox in (own(), own()):
        taken, why = take(sandbox, TERMINALS).split(" ", 1)
        assert 250 < int(taken) <= 256 and why == "No space left on device", (taken, why)
    assert neighbour.commands.run("script -qc 'echo terminal' /dev/null").stdout.strip() == "terminal"


# --- processor -----------------------------------------------------------------------------------------------------------


THREADS = """
import threading, time
made = 0
threading.stack_size(65536)
try:
    while True:
        threading.Thread(target=time.sleep, args=(6,), daemon=True).start()
        made += 1
except RuntimeError: pass
print(made, flush=True)
time.sleep(6)
"""


def test_a_thread_bomb(own, neighbour):
    """Threads count as processes do."""
    sandbox = own()
    limit = int(on_host(sandbox).limit("pids", "pids.max", "pids.max"))
    made = int(take(sandbox, THREADS))
    assert limit - 100 < made < limit
    assert answers(neighbour)
    started = time.monotonic()
    assert sandbox.kill()
    assert time.monotonic() - started < 5


GREEDY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
said = []
try: os.nice(-20); said.append('nice')
except OSError: pass
for policy, priority in ((os.SCHED_FIFO, 99), (os.SCHED_RR, 1)):
    try: os.sched_setscheduler(0, policy, os.sched_param(priority)); said.append('realtime')
    except OSError: pass
deadline = (ctypes.c_uint8 * 48)()
ctypes.memmove(deadline, (48).to_bytes(4, 'little') + (6).to_bytes(4, 'little') + bytes(16) + (10**7).to_bytes(8, 'little') + (10**8).to_bytes(8, 'little') + (10**8).to_bytes(8, 'little'), 48)
if libc.syscall(314, 0, deadline, 0) == 0: said.append('deadline')
try: os.ioprio = libc.syscall(251, 1, 0, 1 << 13); said += ['io'] if os.ioprio == 0 else []
except OSError: pass
for _ in range(8):
    if os.fork() == 0:
        while True: pass
print(said, flush=True)
while True: pass
"""


def test_a_greedy_neighbour(own, neighbour, server):
    """Spinning on all cores with every priority it can get, which is none: all of a neighbour's commands finish."""
    sandbox = own()
    assert take(sandbox, GREEDY) == "[]"
    slowest = 0.0
    for number in range(100):
        started = time.monotonic()
        assert neighbour.commands.run(f"echo {number}", timeout=5).stdout == f"{number}\n"
        slowest = max(slowest, time.monotonic() - started)
    # A second each; five, where others use the machine too.
    assert slowest < 5, f"{slowest:.2f} s"
    started = time.monotonic()
    assert sandbox.kill()
    assert time.monotonic() - started < 5


# --- output ----------------------------------------------------------------------------------------------------------------


def test_output_without_a_line_and_without_meaning(own, neighbour, server):
    """As fast as it goes, with no newline, and bytes that are no UTF-8: bounded memory on the way, and text that has them replaced."""
    from test_limits import MIB, agent_of, rss

    sandbox = own()
    agent = agent_of(on_host(sandbox))
    peak, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.05):
            peak = max(peak, rss(agent), rss(server.front()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        size = 0

        def count(piece: str) -> None:
            nonlocal size
            size += len(piece)

        running = sandbox.commands.run("head -c 64M /dev/zero | tr '\\0' x", background=True, timeout=60)
        for out, _, _ in running:
            size += len(out or "")
        assert size == 64 * MIB
        broken = sandbox.commands.run("printf 'a\\xff\\xfe\\xf0\\x9f\\x98b'; printf '\\x80' >&2", timeout=10)
        assert broken.stdout[0] == "a" and broken.stdout[-1] == "b" and "\ufffd" in broken.stdout and "\ufffd" in broken.stderr
    finally:
        stop.set()
        watching.join()
    assert peak < 150 * MIB, f"{peak // MIB} MiB"
    assert answers(neighbour)


# --- time ------------------------------------------------------------------------------------------------------------------


def test_sparse_tricks_have_an_end(own, neighbour):
    """A file that claims more than the disk has takes nothing until it is written; a claim of blocks is refused at the quota."""
    sandbox = own(diskSizeMB=128)
    assert exit_code(sandbox, "truncate -s 7E /tmp/huge") == 0
    assert exit_code(sandbox, "fallocate -l 1G /tmp/claimed") != 0
    assert exit_code(sandbox, "cp --reflink=always /tmp/huge /tmp/again") in (0, 1)
    said = sandbox.commands.run("head -c 300M /dev/zero > /tmp/zeros || echo refused", timeout=60).stdout
    assert said == "refused\n"
    assert answers(sandbox) and answers(neighbour)


@pytest.mark.parametrize("what", ["sync", "syncfs"])
def test_syncs_in_a_loop_hold_nobody(own, neighbour, what):
    """A sync of everything is a wait for everybody's writes."""
    sandbox = own()
    loop = "while :; do head -c 100k /dev/urandom > /tmp/x; sync; done" if what == "sync" else "while :; do head -c 100k /dev/urandom > /tmp/x; sync -f /tmp/x; done"
    sandbox.commands.run(loop, background=True, timeout=0)
    for _ in range(10):
        assert answers(neighbour, 10)
    with Sandbox.create("base", timeout=60) as another:
        assert answers(another, 10)


AIO = """
import ctypes, errno, time
libc, held, why = ctypes.CDLL(None, use_errno=True), 0, ''
for events in (16384, 1024, 64):
    while held < 1 << 21:
        context = ctypes.c_ulong()
        if libc.syscall(206, events, ctypes.byref(context)) != 0:  # io_setup
            why = errno.errorcode[ctypes.get_errno()]
            break
        held += events
print(held, why, flush=True)
time.sleep(5)
"""


def test_asynchronous_reads_are_not_taken_from_others(own):
    """The kernel counts their queues for the whole host, so a sandbox has none: one could take those of a database on the host."""
    queues = Path("/proc/sys/fs/aio-nr")
    before = int(queues.read_text())
    assert take(own(), AIO) == "0 ENOSYS"
    assert int(queues.read_text()) - before < 1024, "others may have made some"


BUFFERS = """
import resource, socket, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listening, held, sent, end = socket.create_server(('127.0.0.1', 0), backlog=100), [], 0, time.monotonic() + 8
listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
while len(held) < 2000 and time.monotonic() < end:
    writing = socket.create_connection(listening.getsockname())
    reading, _ = listening.accept()
    writing.setblocking(False)
    try:
        while True: sent += writing.send(bytes(1 << 20))
    except BlockingIOError: pass
    held.append((reading, writing))
print(len(held), sent >> 20, flush=True)
time.sleep(4)
"""


def test_buffers_of_tcp_are_the_sandboxs(own, neighbour):
    """The kernel has one limit for the buffers of all TCP connections of the host, near which all of them become slow."""
    pages = int(Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()[0])
    sandbox = own(memoryMB=512)
    used = lambda: int(next(l for l in Path("/proc/net/sockstat").read_text().splitlines() if l.startswith("TCP:")).split()[-1])
    before = used()
    try:
        print(take(sandbox, BUFFERS), "pages", used() - before, "of", pages)
    except (AssertionError, CommandExitException):
        pass  # ended at its limit
    assert used() - before < (1 << 30) // 4096 // 2, "512 MiB in pages: more than the sandbox's memory"
    assert answers(neighbour)
    sandbox.kill()
    until("the buffers are given back", lambda: used() - before < 4096, 30)
