"""A wall clock that jumps by an hour, for the server alone: deadlines are spans of time, so nothing ends early and nothing stays late."""

import ctypes
import os
import signal
import struct
import subprocess
import time

import pytest
from conftest import DATA, Server, until
from e2b import Sandbox, SandboxNotFoundException

# Stands between every program of the mount namespace and the kernel's wall clock; the front clears its environment and leaves its root, so the
# library comes by ld.so.preload and maps its file while it is loaded.
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *ahead;
__attribute__((constructor)) static void find(void) {
    int fd = open(AHEAD, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *page = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) ahead = page;
    close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && ahead) now->tv_sec += *ahead;
    return result;
}
"""
HOUR = 3600
libc = ctypes.CDLL(None)


class WallClock:
    """Of the server and all that it starts; `within` leads there."""

    def __init__(self, folder) -> None:
        self.file, shim, over = folder / "ahead", folder / "shim.so", folder / "over"
        self.file.write_bytes(bytes(4096))
        source = folder / "shim.c"
        source.write_text(SHIM)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", f'-DAHEAD="{self.file}"', "-o", shim, source], check=True)
        over.mkdir()
        # Over /etc of this mount namespace alone.
        hold = f"""
            mount -t tmpfs soulbox-e2e {over} && mkdir {over}/upper {over}/work && echo {shim} > {over}/upper/ld.so.preload &&
            mount -t overlay -o lowerdir=/etc,upperdir={over}/upper,workdir={over}/work soulbox-e2e /etc && echo && exec sleep 3600
        """
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", hold],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),
        )
        assert self.holder.stdout.readline(), "the mount namespace"
        self.within = ("nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--")

    def jump(self, seconds: int) -> None:
        with open(self.file, "r+b") as file:
            file.write(struct.pack("l", seconds))
        shown = float(subprocess.run([*self.within, "date", "+%s"], check=True, capture_output=True).stdout)
        assert abs(shown - time.time() - seconds) < 5, "the control"

    def end(self) -> None:
        self.holder.kill()
        self.holder.wait(10)


@pytest.fixture
def clock(tmp_path):
    tmp_path.chmod(0o755)
    made = WallClock(tmp_path)
    try:
        yield made
    finally:
        made.end()


def ends_in_time(sandbox: Sandbox, since: float, timeout: int) -> None:
    until("its time is over", lambda: not sandbox.is_running(), timeout + 10)
    assert time.monotonic() - since > timeout - 0.5
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


def works(sandbox: Sandbox) -> None:
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.commands.run("echo works").stdout == "works\n"


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_of_an_hour(clock, jump):
    server = Server(within=clock.within)
    try:
        server.start("--warm", "1", "--parked", "1")
        # A connect sets the deadline anew, so one is never connected to.
        lasting, untouched, short = (Sandbox.create("base", timeout=timeout) for timeout in (300, 300, 6))
        since = time.monotonic()
        clock.jump(jump)
        time.sleep(2)
        for sandbox in (lasting, untouched, short):
            assert sandbox.is_running()
        ends_in_time(short, since, 6)
        works(lasting)
        # What is created, prolonged and looked at after the jump.
        after, since = Sandbox.create("base", timeout=4), time.monotonic()
        lasting.set_timeout(200)
        ends_in_time(after, since, 4)
        works(lasting)
        # A front that starts in the new time, and an agent.
        front = server.front()
        os.kill(front, signal.SIGKILL)
        until("a new front", lambda: server.front() not in (None, front) and server.answers())
        works(lasting)
        assert untouched.commands.run("echo works").stdout == "works\n"
        server.kill()
        server.start("--warm", "1", "--parked", "1")
        works(lasting)
        time.sleep(2)
        assert untouched.commands.run("echo works").stdout == "works\n"
        last, since = Sandbox.create("base", timeout=4), time.monotonic()
        ends_in_time(last, since, 4)
        works(lasting)
        lasting.set_timeout(1)
        ends_in_time(lasting, time.monotonic(), 1)
    finally:
        server.end()
    assert str(DATA / "pool") not in open("/proc/mounts").read()
