"""Holds a process of the host's still, and makes system calls as that very process: with its user, its root, its filter.

So a test learns what an intruder could do who runs code in it. x86-64; the caller is root. One thread of the caller must do all of it.
"""

import ctypes
import os
import struct
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.syscall.restype = ctypes.c_long

# linux/ptrace.h
SINGLESTEP, GETREGS, SETREGS, DETACH, SEIZE, INTERRUPT = 9, 12, 13, 17, 0x4206, 0x4207
WALL = 0x40000000  # waitpid(2), __WALL
PIDFD_GETFD = 438
# struct user_regs_struct of sys/user.h: 27 words; those that a system call uses, by their place.
WORDS = 27
RAX, ORIG_RAX, RIP, RSP = 10, 15, 16, 19
ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9
SYSCALL = b"\x0f\x05"


def ptrace(request: int, thread: int, data=None) -> None:
    if libc.ptrace(request, thread, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x} of {thread}: {os.strerror(number)}")


class Held:
    """All threads of `pid` stand still until the end of the `with`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.threads: list[int] = []

    def __enter__(self) -> "Held":
        try:
            # A thread that was not stopped yet may make another one.
            while new := {int(path.name) for path in Path(f"/proc/{self.pid}/task").iterdir()} - set(self.threads):
                for thread in sorted(new):
                    ptrace(SEIZE, thread)
                    self.threads.append(thread)
                    ptrace(INTERRUPT, thread)
                    os.waitpid(thread, WALL)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for thread in tuple(self.threads):
            try:
                ptrace(DETACH, thread)
            except ProcessLookupError:
                self.bury(thread, 0)  # it was killed, and ends now
        self.threads.clear()

    def bury_the_dead(self) -> None:
        """Whoever traces a process has to wait for its end, or nobody else sees it end."""
        for thread in tuple(self.threads):
            if self.bury(thread, os.WNOHANG):
                self.threads.remove(thread)

    def bury(self, thread: int, options: int) -> bool:
        try:
            return os.waitpid(thread, WALL | options)[0] != 0
        except ChildProcessError:
            return True

    def call(self, number: int, *arguments: int | bytes) -> int:
        """The result of a system call, or minus errno. Bytes are passed by their address, with a NUL after them."""
        thread = self.threads[0]
        words = (ctypes.c_uint64 * WORDS)()
        ptrace(GETREGS, thread, words)
        before = bytes(words)
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            # It stands behind a `syscall` of its own, which serves again.
            at = words[RIP] - len(SYSCALL)
            memory.seek(at)
            assert memory.read(len(SYSCALL)) == SYSCALL, "the thread does not wait in the kernel"
            # Below the red zone of its stack.
            free = words[RSP] - 4096
            for place, argument in zip(ARGUMENTS, arguments):
                if isinstance(argument, bytes):
                    free -= len(argument) + 16 & ~15
                    memory.seek(free)
                    memory.write(argument + b"\0")
                    argument = free
                words[place] = argument & 0xFFFF_FFFF_FFFF_FFFF
        words[RAX], words[ORIG_RAX], words[RIP] = number, 0xFFFF_FFFF_FFFF_FFFF, at
        ptrace(SETREGS, thread, words)
        ptrace(SINGLESTEP, thread)
        os.waitpid(thread, WALL)
        ptrace(GETREGS, thread, words)
        (result,) = struct.unpack("q", struct.pack("Q", words[RAX]))
        ctypes.memmove(words, before, len(before))
        ptrace(SETREGS, thread, words)
        return result


def take_descriptor(pid: int, descriptor: int) -> int:
    """A copy of an open descriptor of another process."""
    handle = os.pidfd_open(pid)
    try:
        taken = libc.syscall(PIDFD_GETFD, handle, descriptor, 0)
        if taken == -1:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return taken
    finally:
        os.close(handle)
