"""Programs that hold one kind of state each and can say whether it is still right. They run inside a sandbox.

`witnesses.py NAME` is one of them: each check of what it holds is a connection to /tmp/witness/NAME, answered with `ok` or with what is
wrong. It can be asked when there is a NAME.listens. What a check compares with is in memory, and a check leaves new state for the next one.
`witnesses.py ask NAME...` asks and prints the answers as JSON.
"""

import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PLACE = Path("/tmp/witness")
libc = ctypes.CDLL(None, use_errno=True)


def counter():
    """A thread that counts, a clock that does not run back, and a wall clock that is not left behind."""
    state = {"count": 0, "seen": -1, "monotonic": time.monotonic()}

    def work():
        while True:
            state["count"] += 1
            time.sleep(0.01)

    threading.Thread(target=work, daemon=True).start()

    def check():
        now = time.monotonic()
        assert now >= state["monotonic"], f"the monotonic clock ran back by {state['monotonic'] - now} s"
        until("it counts on", lambda: state["count"] > state["seen"])
        state["seen"], state["monotonic"] = state["count"], now

    return check


def heap():
    """HEAP_MIB of memory, no two pages alike in all bytes, and a digest of it."""
    filler = random.Random(1).randbytes((1 << 20) - 8)
    pieces = [number.to_bytes(8, "little") + filler for number in range(int(os.environ["HEAP_MIB"]))]

    def digest():
        summed = hashlib.sha256()
        for piece in pieces:
            summed.update(piece)
        return summed.hexdigest()

    before = digest()

    def check():
        assert digest() == before, "memory has changed"

    return check


TREE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
/* Node N of a binary tree of SIZE processes: each question is answered with the sum of its number and its children's answers. */
static void node(uint32_t number, uint32_t size, int asked, int answer) {
    int down[2], up[2], ask[2], hear[2], children = 0;
    if (number % 7 == 0) setsid();
    for (uint32_t child = 2 * number; child <= 2 * number + 1 && child <= size; child++) {
        if (pipe(down) || pipe(up)) exit(1);
        if (fork() == 0) {
            close(down[1]); close(up[0]);
            node(child, size, down[0], up[1]);
        }
        close(down[0]); close(up[1]);
        ask[children] = down[1]; hear[children++] = up[0];
    }
    char question;
    while (read(asked, &question, 1) == 1) {
        uint32_t sum = number, part;
        for (int i = 0; i < children; i++) if (write(ask[i], "?", 1) != 1) exit(1);
        for (int i = 0; i < children; i++) { if (read(hear[i], &part, 4) != 4) exit(1); sum += part; }
        if (write(answer, &sum, 4) != 4) exit(1);
    }
    exit(0);
}
int main(int count, char **arguments) { node(1, atoi(arguments[1]), 0, 1); }
"""


def tree():
    """200 processes, some in sessions of their own, that ask each other by pipes; and a child that nobody has waited for."""
    size = 200
    folder = tempfile.mkdtemp()
    Path(folder, "tree.c").write_text(TREE)
    subprocess.run(["gcc", "-O1", "-o", f"{folder}/tree", f"{folder}/tree.c"], check=True)
    root = subprocess.Popen([f"{folder}/tree", str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    zombies = []

    def leave_a_zombie():
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        zombies.append(pid)

    def check():
        root.stdin.write(b"?")
        ready, _, _ = select.select([root.stdout], [], [], 10)
        assert ready, "the tree does not answer"
        total = int.from_bytes(root.stdout.read(4), "little")
        assert total == size * (size + 1) // 2, f"the tree says {total}"
        _, status = os.waitpid(zombies.pop(), 0)
        assert os.waitstatus_to_exitcode(status) == 7, "the zombie's status has changed"
        leave_a_zombie()

    leave_a_zombie()
    return check


def echoing(peer):
    """A process that sends back each message with the number of messages so far."""
    if os.fork() == 0:
        count = 0
        while message := peer.recv(64):
            count += 1
            peer.send(message + b" %d" % count)
        os._exit(0)
    peer.close()


def conversation(mine, theirs):
    """An answer is always on its way, unread, when nobody checks."""
    echoing(theirs)
    mine.settimeout(10)
    state = {"sent": 1}
    mine.send(b"message 1")

    def check():
        heard = mine.recv(64)
        assert heard == b"message %d %d" % (state["sent"], state["sent"]), heard
        state["sent"] += 1
        mine.send(b"message %d" % state["sent"])
        ready, _, _ = select.select([mine], [], [], 10)
        assert ready, "no answer"

    return check


def connected(family, address):
    """A conversation over a listener that goes on listening."""
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()

    def pair():
        mine = socket.socket(family)
        mine.connect(listener.getsockname())
        return mine, listener.accept()[0]

    ends = pair()
    held = conversation(*ends)

    def check():
        held()
        first, second = pair()
        first.sendall(b"new")
        assert second.recv(3) == b"new"
        first.close()
        second.close()

    return check


def unix_sockets():
    """A connection by path, whose path is a listener's still, and a pair for datagrams."""
    by_path = connected(socket.AF_UNIX, f"{tempfile.mkdtemp()}/socket")
    pair = conversation(*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))

    def check():
        by_path()
        pair()

    return check


def loopback():
    """A TCP connection between two processes, its listener, and a socket for datagrams."""
    tcp = connected(socket.AF_INET, ("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    datagrams.settimeout(10)

    def check():
        tcp()
        datagrams.sendto(b"datagram", datagrams.getsockname())
        assert datagrams.recv(64) == b"datagram"

    return check


def inotify():
    """Watches of a folder and of a file."""
    IN_CREATE, IN_MODIFY = 0x100, 0x2
    folder = Path(tempfile.mkdtemp())
    (folder / "file").write_text("")
    watcher = libc.inotify_init1(0)
    watches = {
        "folder": libc.inotify_add_watch(watcher, bytes(folder), IN_CREATE),
        "file": libc.inotify_add_watch(watcher, bytes(folder / "file"), IN_MODIFY),
    }
    assert watcher >= 0 and min(watches.values()) > 0, os.strerror(ctypes.get_errno())
    state = {"made": 0}

    def heard(watch, kind):
        ready, _, _ = select.select([watcher], [], [], 10)
        assert ready, f"the watch of the {watch} says nothing"
        event = os.read(watcher, 4096)
        number, mask = int.from_bytes(event[:4], "little"), int.from_bytes(event[4:8], "little")
        assert number == watches[watch] and mask & kind, event

    def check():
        state["made"] += 1
        (folder / f"new-{state['made']}").touch()
        heard("folder", IN_CREATE)
        with open(folder / "file", "a") as file:
            file.write("more")
        heard("file", IN_MODIFY)

    return check


def files():
    """A deleted file that is open, at an offset; a file of two names that was renamed while it was open; a hole."""
    folder = Path(tempfile.mkdtemp())
    content = random.Random(2).randbytes(1 << 20)
    deleted = open(folder / "deleted", "w+b", buffering=0)
    deleted.write(content)
    deleted.seek(1000)
    os.unlink(folder / "deleted")
    (folder / "once").write_text("linked")
    os.link(folder / "once", folder / "twice")
    renamed = open(folder / "once")
    os.rename(folder / "once", folder / "moved")
    sparse = open(folder / "sparse", "w+b", buffering=0)
    sparse.truncate(1 << 32)

    def check():
        assert deleted.read(1) == content[1000:1001] and deleted.tell() == 1001, "its offset has changed"
        deleted.seek(0)
        assert deleted.read(len(content)) == content and os.fstat(deleted.fileno()).st_nlink == 0
        deleted.seek(1000)
        assert not (folder / "deleted").exists()
        renamed.seek(0)
        assert renamed.read() == "linked" and os.fstat(renamed.fileno()).st_nlink == 2
        assert os.fstat(renamed.fileno()).st_ino == (folder / "twice").stat().st_ino, "it is another file"
        assert os.fstat(sparse.fileno()).st_blocks < 100

    return check


def locks():
    """A lock of a whole file and one of a part of another: held, and given up when they are given up."""
    folder = Path(tempfile.mkdtemp())
    whole, part = (open(folder / name, "w") for name in ("whole", "part"))
    fcntl.flock(whole, fcntl.LOCK_EX)
    fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)
    attempts = f"""
import fcntl
def held(attempt):
    try: attempt()
    except OSError: return True
    return False
whole, part = open({str(folder / "whole")!r}, "w"), open({str(folder / "part")!r}, "w")
print(held(lambda: fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)),
      held(lambda: fcntl.lockf(part, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 12)),
      held(lambda: fcntl.lockf(part, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)))
"""

    def held():
        return subprocess.run([sys.executable, "-c", attempts], capture_output=True, text=True, timeout=20).stdout.split()

    def check():
        assert held() == ["True", "True", "False"], "somebody else could take them"
        fcntl.flock(whole, fcntl.LOCK_UN)
        fcntl.lockf(part, fcntl.LOCK_UN)
        assert held() == ["False", "False", "False"], "nobody could take them"
        fcntl.flock(whole, fcntl.LOCK_EX)
        fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)

    return check


def shared():
    """Memory that two processes share, in each of the ways there are: what one writes the other reads."""
    size = 1 << 16
    by_name = tempfile.NamedTemporaryFile(dir="/dev/shm")
    by_name.truncate(size)
    of_memory = os.memfd_create("witness")
    os.truncate(of_memory, size)
    identifier = libc.shmget(0, size, 0o1600)
    assert identifier >= 0, os.strerror(ctypes.get_errno())
    libc.shmat.restype = ctypes.c_void_p
    attached = libc.shmat(identifier, None, 0)
    kept = tempfile.TemporaryFile()
    kept.truncate(size)
    views = {
        "/dev/shm": memoryview(mmap.mmap(by_name.fileno(), size)),
        "memfd": memoryview(mmap.mmap(of_memory, size)),
        "System V": memoryview((ctypes.c_char * size).from_address(attached)).cast("B"),
        "anonymous": memoryview(mmap.mmap(-1, size)),
        "a file's": memoryview(mmap.mmap(kept.fileno(), size)),
    }
    mine, theirs = socket.socketpair()
    if os.fork() == 0:
        while number := theirs.recv(1):
            for view in views.values():
                view[number[0]] = number[0]
            theirs.send(number)
        os._exit(0)
    mine.settimeout(10)
    state = {"written": 0}

    def check():
        state["written"] = state["written"] % 250 + 1
        mine.send(bytes([state["written"]]))
        mine.recv(1)
        for name, view in views.items():
            assert view[state["written"]] == state["written"], f"{name} memory is not shared any more"
            assert view[1] == 1 and view[60000] == 0, f"{name} memory has changed"

    return check


def pipes():
    """A named pipe with bytes in it that nobody has read, and one that another process waits at."""
    folder = Path(tempfile.mkdtemp())
    for name in ("filled", "waiting"):
        os.mkfifo(folder / name)
    filled = os.open(folder / "filled", os.O_RDWR)
    os.write(filled, b"unread")
    back_read, back_write = os.pipe()
    if os.fork() == 0:
        waiting = os.open(folder / "waiting", os.O_RDWR)
        while True:
            os.write(back_write, os.read(waiting, 100).upper())
    writer = os.open(folder / "waiting", os.O_RDWR)

    def check():
        assert os.read(filled, 100) == b"unread"
        os.write(filled, b"unread")
        os.write(writer, b"heard")
        ready, _, _ = select.select([back_read], [], [], 10)
        assert ready and os.read(back_read, 100) == b"HEARD"

    return check


def threads():
    """Eight that wait on a futex, one that waits with a limit, and a timer of signals."""
    condition, state = threading.Condition(), {"round": 0, "woken": 0, "turns": 0, "alarms": 0, "seen": (0, 0)}

    def wait():
        seen = 0
        while True:
            with condition:
                condition.wait_for(lambda: state["round"] > seen)
                seen = state["round"]
                state["woken"] += 1

    def wait_with_a_limit():
        never = threading.Event()
        while True:
            never.wait(0.05)
            state["turns"] += 1

    for _ in range(8):
        threading.Thread(target=wait, daemon=True).start()
    threading.Thread(target=wait_with_a_limit, daemon=True).start()

    def alarm(*_):
        state["alarms"] += 1

    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    def check():
        with condition:
            state["round"] += 1
            state["woken"] = 0
            condition.notify_all()
        until("all eight wake", lambda: state["woken"] == 8)
        turns, alarms = state["seen"]
        until("waits with a limit end", lambda: state["turns"] > turns)
        until("the timer goes on", lambda: state["alarms"] > alarms)
        state["seen"] = state["turns"], state["alarms"]

    return check


def descriptors():
    """An epoll of an eventfd and of a process, and a signal that is blocked and pending."""
    counted = os.eventfd(5, os.EFD_NONBLOCK)
    child = subprocess.Popen(["sleep", "1000000"])
    process = os.pidfd_open(child.pid)
    polled = select.epoll()
    polled.register(counted, select.EPOLLIN)
    polled.register(process, select.EPOLLIN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)

    def check():
        assert polled.poll(0) == [(counted, select.EPOLLIN)], "other events"
        assert os.eventfd_read(counted) == 5
        assert polled.poll(0) == [], "events that were not"
        os.eventfd_write(counted, 5)
        assert signal.sigpending() == {signal.SIGUSR1}, "no signal is pending"
        signal.pidfd_send_signal(process, 0)

    return check


WITNESSES = [counter, heap, tree, unix_sockets, loopback, inotify, files, locks, shared, pipes, threads, descriptors]
NAMES = [each.__name__ for each in WITNESSES]


def until(what, condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"not within 10 s: {what}"
        time.sleep(0.01)


def serve(name, check):
    PLACE.mkdir(exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    # It keeps the name that it was bound to: one that was renamed is bound to its first name by a restore.
    listener.bind(str(PLACE / name))
    listener.listen()
    (PLACE / f"{name}.listens").touch()
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                check()
                answer = "ok"
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            connection.sendall(answer.encode())


def ask(name):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        try:
            connection.connect(str(PLACE / name))
            return connection.recv(4096).decode()
        except OSError as error:
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        print(json.dumps({name: ask(name) for name in sys.argv[2:]}))
    else:
        serve(sys.argv[1], globals()[sys.argv[1]]())
