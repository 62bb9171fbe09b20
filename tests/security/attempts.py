"""Runs inside a sandbox: tries what a program must not be able to do, and prints one JSON object, attempt to outcome.

An outcome is `done` or the name of the errno. Needs nothing but Python; the numbers are those of x86-64.
"""

import ctypes
import errno
import fcntl
import json
import os
import pty
import signal
import socket
import stat
import struct

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
outcomes: dict[str, str] = {}


def name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def call(number: int, *arguments) -> int:
    """A system call past libc: its result, or minus errno."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result == -1 else result


def system_call(what: str, number: int, *arguments) -> None:
    result = call(number, *arguments)
    outcomes[what] = name(-result) if result < 0 else "done"


def attempt(what: str, action) -> None:
    try:
        action()
        outcomes[what] = "done"
    except OSError as error:
        outcomes[what] = name(error.errno)


def spawn(what: str, number: int, *arguments) -> None:
    """A system call that returns twice where it is allowed."""
    result = call(number, *arguments)
    if result == 0:
        os._exit(0)
    if result > 0:
        os.waitpid(result, 0)
    outcomes[what] = name(-result) if result < 0 else "done"


NAMESPACES = {
    "time": 0x80,
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}


def namespaces() -> None:
    for kind, flag in NAMESPACES.items():
        # In a child: the call that succeeds must not change what the later attempts see.
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, struct.pack("q", call(272, flag)))
            os._exit(0)
        os.waitpid(child, 0)
        result = struct.unpack("q", os.read(read, 8))[0]
        outcomes[f"unshare {kind}"] = name(-result) if result < 0 else "done"
        if kind == "time":
            continue  # lies in the signal bits of clone
        spawn(f"clone {kind}", 56, flag | signal.SIGCHLD, 0, 0, 0, 0)
    for kind in ("mnt", "user", "net", "pid", "uts", "ipc", "cgroup", "time"):
        descriptor = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
        system_call(f"setns {kind}", 308, descriptor, 0)
        os.close(descriptor)
    arguments = ctypes.create_string_buffer(struct.pack("11Q", NAMESPACES["user"], *[0] * 3, signal.SIGCHLD, *[0] * 6))
    spawn("clone3", 435, arguments, 88)


def mounts() -> None:
    none = ctypes.c_char_p(None)
    system_call("mount proc", 165, b"proc", b"/mnt", b"proc", 0, none)
    system_call("mount tmpfs", 165, b"none", b"/mnt", b"tmpfs", 0, none)
    system_call("mount bind", 165, b"/etc", b"/mnt", none, 0x1000, none)
    system_call("mount overlay", 165, b"none", b"/mnt", b"overlay", 0, b"lowerdir=/etc:/usr")
    system_call("remount /proc/sys writable", 165, none, b"/proc/sys", none, 0x20 | 0x1000, none)
    system_call("umount /proc/sys", 166, b"/proc/sys", 2)
    system_call("umount /", 166, b"/", 2)
    system_call("pivot_root", 155, b"/", b"/mnt")
    for kind in ("sysfs", "cgroup", "cgroup2", "devpts", "debugfs"):
        system_call(f"mount {kind}", 165, b"none", b"/mnt", kind.encode(), 0, none)
    system_call("fsopen", 430, b"proc", 0)
    system_call("fsconfig", 431, -1, 6, none, none, 0)
    system_call("fsmount", 432, -1, 0, 0)
    system_call("fspick", 433, -100, b"/", 0)
    system_call("open_tree", 428, -100, b"/", 1)
    system_call("move_mount", 429, -100, b"/etc", -100, b"/mnt", 0)
    system_call("mount_setattr", 442, -100, b"/proc/sys", 0, ctypes.create_string_buffer(struct.pack("4Q", 0, 1, 0, 0)), 32)


def kernel() -> None:
    zeros = ctypes.create_string_buffer(512)
    system_call("bpf", 321, 0, zeros, 120)
    system_call("perf_event_open", 298, ctypes.create_string_buffer(struct.pack("II", 1, 128) + bytes(120)), 0, -1, -1, 0)
    system_call("userfaultfd", 323, 1)  # UFFD_USER_MODE_ONLY
    system_call("io_uring_setup", 425, 8, ctypes.create_string_buffer(512))
    system_call("io_uring_enter", 426, -1, 0, 0, 0, 0, 0)
    system_call("io_uring_register", 427, -1, 0, 0, 0)
    system_call("keyctl", 250, 0, -3, 1)  # KEYCTL_GET_KEYRING_ID of the session
    system_call("add_key", 248, b"user", b"soulbox", b"x", 1, -3)
    system_call("request_key", 249, b"user", b"soulbox", ctypes.c_char_p(None), 0)
    handle, mount = ctypes.create_string_buffer(struct.pack("II", 128, 0) + bytes(128)), ctypes.c_int()
    call(303, -100, b"/etc/passwd", handle, ctypes.byref(mount), 0)  # name_to_handle_at
    root = os.open("/", os.O_RDONLY)
    system_call("open_by_handle_at", 304, root, handle, os.O_RDONLY)
    os.close(root)
    # LINUX_REBOOT_CMD_CAD_OFF: where it were allowed, nothing would go down.
    system_call("reboot", 169, 0xFEE1DEAD - (1 << 32), 672274793, 0, 0)
    system_call("swapon", 167, b"/tmp/none", 0)
    system_call("swapoff", 168, b"/tmp/none")
    now = ctypes.create_string_buffer(16)
    call(228, 0, now)
    system_call("clock_settime", 227, 0, now)
    system_call("settimeofday", 164, now, 0)
    system_call("clock_adjtime", 305, 0, ctypes.create_string_buffer(struct.pack("I", 1) + bytes(255)))
    system_call("adjtimex", 159, ctypes.create_string_buffer(struct.pack("I", 1) + bytes(255)))
    system_call("syslog", 103, 3, zeros, 512)
    system_call("acct", 163, b"/tmp/none")
    system_call("quotactl_fd", 443, -1, 0x800001, 0, zeros)
    system_call("quotactl", 179, 0x80000100, b"/dev/null", 0, zeros)
    system_call("kexec_load", 246, 0, 0, 0, 0)
    system_call("kexec_file_load", 320, -1, -1, 0, b"", 0)
    system_call("init_module", 175, zeros, 0, b"")
    system_call("finit_module", 313, -1, b"", 0)
    system_call("delete_module", 176, b"none", 0)
    system_call("iopl", 172, 3)
    system_call("ioperm", 173, 0x80, 1, 1)
    system_call("modify_ldt", 154, 1, zeros, 16)
    system_call("fanotify_init", 300, 0, 0)
    system_call("sethostname", 170, b"other", 5)
    # System calls that no kernel of today has: an allow-list says so to whatever comes next.
    system_call("an unknown call", 1000)
    system_call("x32 getpid", 0x40000000 | 39)


def terminals() -> None:
    master, slave = pty.openpty()
    child = os.fork()
    if child == 0:
        # TIOCSTI asks for the own controlling terminal.
        os.setsid()
        fcntl.ioctl(slave, 0x540E, 0)
        typed = ctypes.create_string_buffer(b"x")
        for request, what in ((0x5412, "TIOCSTI"), (0x5412 | 0xFFFF << 32, "TIOCSTI with high bits"), (0x541C, "TIOCLINUX")):
            system_call(what, 16, slave, request, typed)
        os.write(answer[1], json.dumps(outcomes).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(answer[1])
    outcomes.update(json.loads(os.read(answer[0], 65536)))
    os.close(master)
    os.close(slave)


def sockets() -> None:
    families = {"AF_VSOCK": 40, "AF_PACKET": 17, "AF_ALG": 38, "AF_XDP": 44, "AF_KEY": 15, "AF_CAN": 29, "AF_RDS": 21, "AF_TIPC": 30}
    for family, number in families.items():
        system_call(family, 41, number, socket.SOCK_DGRAM, 0)
    attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
    attempt("raw IPv6 socket", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58).close())

    def transparent():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT

    attempt("transparent socket", transparent)


def files() -> None:
    devices = {"loop": (7, 0), "sda": (8, 0), "vda": (254, 0), "mem": (1, 1), "kmsg": (1, 11), "kvm": (10, 232), "fuse": (10, 229), "tun": (10, 200)}
    for label, (major, minor) in devices.items():
        kind = stat.S_IFBLK if label in ("loop", "sda", "vda") else stat.S_IFCHR
        attempt(f"mknod {label}", lambda: os.mknod(f"/tmp/{label}", kind | 0o600, os.makedev(major, minor)))

    def write(path: str):
        with open(path, "wb", buffering=0) as file:
            file.write(b"1")

    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/kptr_restrict",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/memory/release_agent",
        "/sys/fs/cgroup/notify_on_release",
        "/sys/kernel/debug/sched/features",
        "/sys/kernel/security/lockdown",
        "/sys/module/kernel/parameters/panic",
        "/usr/lib/soulbox/envd",
        "/usr/lib/soulbox/launch",
    ):
        attempt(f"write {path}", lambda: write(path))
    # What runs as pid 1 and 2 by its own link, as an attack on container runtimes does.
    attempt("overwrite init by its link", lambda: write("/proc/1/exe"))
    attempt("overwrite envd by its link", lambda: write("/proc/2/exe"))
    attempt("replace envd", lambda: os.rename("/usr/bin/true", "/usr/lib/soulbox/envd"))
    attempt("remove envd", lambda: os.unlink("/usr/lib/soulbox/envd"))
    attempt("chmod envd", lambda: os.chmod("/usr/lib/soulbox/envd", 0o777))
    attempt("rename its folder", lambda: os.rename("/usr/lib/soulbox", "/usr/lib/other"))


def the_agent() -> None:
    """The agent of the sandbox: process 2, whose memory holds the key for /init."""
    for entry in ("environ", "mem", "maps", "auxv", "syscall", "stack", "pagemap"):
        attempt(f"read envd's {entry}", lambda: open(f"/proc/2/{entry}", "rb").read(1))
    for entry in ("exe", "root", "cwd", "fd/0", "ns/net"):
        attempt(f"follow envd's {entry}", lambda: os.readlink(f"/proc/2/{entry}"))
    system_call("ptrace envd", 101, 16, 2, 0, 0)  # PTRACE_ATTACH
    system_call("seize envd", 101, 0x4206, 2, 0, 0)
    buffer = ctypes.create_string_buffer(8)
    vector = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 8))
    system_call("process_vm_readv envd", 310, 2, vector, 1, vector, 1, 0)
    system_call("process_vm_writev envd", 311, 2, vector, 1, vector, 1, 0)
    agent = call(434, 2, 0)
    system_call("pidfd_getfd envd", 438, agent, 0, 0)


answer = os.pipe()
for tried in (namespaces, mounts, kernel, terminals, sockets, files, the_agent):
    tried()
print(json.dumps(outcomes))
