"""Runs on the host as a user without privilege: tries what the user of the front must not be able to do, and prints one JSON object,
attempt to outcome (`done` or the name of the errno).

usage: intruder.py < {"read": [PATH...], "write": [PATH...], "processes": [PID...], "namespaces": [PATH...]}
"""

import ctypes
import errno
import json
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
outcomes: dict[str, str] = {}


def attempt(what: str, action) -> None:
    try:
        action()
        outcomes[what] = "done"
    except OSError as error:
        outcomes[what] = errno.errorcode.get(error.errno, str(error.errno))


def call(number: int, *arguments: int):
    def action() -> None:
        if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)) == -1:
            raise OSError(ctypes.get_errno(), "")

    return action


def read(path: str) -> None:
    if os.path.isdir(path):
        os.listdir(path)
    else:
        with open(path, "rb") as file:
            file.read(1)


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | (os.O_TMPFILE if os.path.isdir(path) else 0), 0o600))


def reach_into(pid: int) -> None:
    for entry in ("environ", "mem", "maps", "auxv", "stack", "pagemap"):
        attempt(f"read {entry} of {pid}", lambda: open(f"/proc/{pid}/{entry}", "rb").read(1))
    for entry in ("exe", "root", "cwd", "fd/0", "ns/net"):
        attempt(f"follow {entry} of {pid}", lambda: os.readlink(f"/proc/{pid}/{entry}"))
    attempt(f"list descriptors of {pid}", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt(f"enter the root of {pid}", lambda: os.listdir(f"/proc/{pid}/root/"))
    attempt(f"trace {pid}", call(101, 0x4206, pid, 0, 0))  # PTRACE_SEIZE, which does not stop it
    attempt(f"take a descriptor of {pid}", call(438, os.pidfd_open(pid), 0, 0))
    attempt(f"signal {pid}", lambda: os.kill(pid, 0))
    attempt(f"enter by pidfd {pid}", call(308, os.pidfd_open(pid), 0x40000000))  # setns, CLONE_NEWNET
    attempt(f"read the limits of {pid}", call(302, pid, 7, 0, ctypes.addressof(limits)))  # prlimit64, RLIMIT_NOFILE


limits = (ctypes.c_uint64 * 2)()
asked = json.load(sys.stdin)
for path in asked["read"]:
    attempt(f"read {path}", lambda: read(path))
for path in asked["write"]:
    attempt(f"write {path}", lambda: write(path))
for path in asked["namespaces"]:
    attempt(f"open {path}", lambda: os.close(os.open(path, os.O_RDONLY)))
for pid in asked["processes"]:
    reach_into(pid)
print(json.dumps(outcomes))
