"""What a program of a sandbox is to the host, what it is refused, and what must run all the same."""

import json
import os
import secrets
from pathlib import Path

import pytest
from conftest import exit_code, on_host, run_file, status_fields
from e2b import CommandExitException, Sandbox

# Bounding set and what root inside has: the `CAPABILITIES` of crates/soulbox-runtime/src/plan.rs, by number.
CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "SYS_CHROOT": 18,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}
BOUNDING = sum(1 << number for number in CAPABILITIES.values())
NAMESPACES = ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup")
ID_BASE, ID_COUNT = 0x7000_0000, 65536

# What each attempt of attempts.py must come to, for root and for the user. Where there are two, the second is that of a
# kernel without the thing.
REFUSED = {
    "EPERM": """
        unshare time, unshare mount, unshare cgroup, unshare uts, unshare ipc, unshare user, unshare pid, unshare network,
        clone mount, clone cgroup, clone uts, clone ipc, clone user, clone pid, clone network,
        setns mnt, setns user, setns net, setns pid, setns uts, setns ipc, setns cgroup, setns time,
        mount proc, mount tmpfs, mount bind, mount overlay, remount /proc/sys writable, umount /proc/sys, umount /, pivot_root,
        mount sysfs, mount cgroup, mount cgroup2, mount devpts, mount debugfs,
        fsopen, fsconfig, fsmount, fspick, open_tree, move_mount, mount_setattr,
        bpf, perf_event_open, userfaultfd, keyctl, add_key, request_key, open_by_handle_at, reboot, swapon, swapoff,
        clock_settime, clock_adjtime, settimeofday, adjtimex, syslog, acct, quotactl, quotactl_fd, kexec_load, kexec_file_load,
        init_module, finit_module, delete_module, iopl, ioperm,
        modify_ldt, fanotify_init, sethostname, TIOCSTI, TIOCSTI with high bits, TIOCLINUX,
        raw socket, raw IPv6 socket, transparent socket,
        ptrace envd, seize envd, process_vm_readv envd, process_vm_writev envd, pidfd_getfd envd
    """,
    "ENOSYS": "clone3, io_uring_setup, io_uring_enter, io_uring_register, an unknown call, x32 getpid",
    "EAFNOSUPPORT": "AF_VSOCK, AF_PACKET, AF_ALG, AF_XDP, AF_KEY, AF_CAN, AF_RDS, AF_TIPC",
    "EPERM or EACCES": """
        mknod loop, mknod sda, mknod vda, mknod mem, mknod kmsg, mknod kvm, mknod fuse, mknod tun, read envd's syscall
    """,
    "EROFS or ETXTBSY or EACCES": "overwrite init by its link",
    "EROFS": """
        write /proc/sys/kernel/core_pattern, write /proc/sys/kernel/hostname, write /proc/sys/vm/drop_caches,
        write /proc/sys/net/ipv4/ip_forward, write /proc/sys/user/max_user_namespaces,
        write /proc/sys/kernel/kptr_restrict,
        write /usr/lib/soulbox/envd, write /usr/lib/soulbox/launch, remove envd, chmod envd
    """,
    "EROFS or ENOENT": """
        write /proc/sysrq-trigger, write /proc/irq/default_smp_affinity, write /sys/kernel/uevent_helper, write /sys/power/state,
        write /sys/fs/cgroup/cgroup.procs, write /sys/fs/cgroup/release_agent, write /sys/fs/cgroup/memory/release_agent,
        write /sys/fs/cgroup/notify_on_release, write /proc/sys/fs/binfmt_misc/register, write /sys/kernel/debug/sched/features,
        write /sys/kernel/security/lockdown, write /proc/sys/kernel/modprobe, write /sys/module/kernel/parameters/panic
    """,
    "EXDEV": "replace envd",
    "EBUSY or EACCES": "rename its folder",
    "EACCES": """
        read envd's environ, read envd's mem, read envd's maps, read envd's auxv, read envd's stack, read envd's pagemap,
        overwrite envd by its link, follow envd's exe, follow envd's root, follow envd's cwd, follow envd's fd/0, follow envd's ns/net
    """,
}
EXPECTED = {
    attempt.strip(): tuple(outcome.split(" or ")) for outcome, attempts in REFUSED.items() for attempt in attempts.split(",")
}


@pytest.fixture(scope="module", params=["root", "user"])
def outcomes(sandbox, request) -> dict[str, str]:
    return json.loads(run_file(sandbox, "attempts.py", user=request.param))


@pytest.mark.parametrize("attempt", EXPECTED)
def test_refused(outcomes, attempt):
    assert outcomes[attempt] in EXPECTED[attempt]


def test_every_attempt_has_its_outcome(outcomes):
    assert set(outcomes) == set(EXPECTED)


def test_ids_are_a_range_of_its_own(sandbox, own):
    other = own()
    bases = []
    for made in (sandbox, other):
        root, user = on_host(made, "root"), on_host(made)
        base = int(root.status()["Uid"].split()[0])
        assert base >= ID_BASE and base % ID_COUNT == 0
        assert [int(i) for i in root.status()["Uid"].split()] == [base] * 4
        assert [int(i) for i in root.status()["Gid"].split()] == [base] * 4
        assert [int(i) for i in user.status()["Uid"].split()] == [base + 1000] * 4
        assert [int(i) for i in user.status()["Gid"].split()] == [base + 1000] * 4
        for process in (root, user):
            assert all(base <= int(group) < base + ID_COUNT for group in process.status()["Groups"].split())
            for ids in ("uid_map", "gid_map"):
                assert [int(i) for i in process.read(ids).split()] == [0, base, ID_COUNT]
        bases.append(base)
    assert bases[0] != bases[1]


@pytest.mark.parametrize("user", ["root", "user"])
def test_capabilities(sandbox, user):
    fields = on_host(sandbox, user).status()
    assert int(fields["CapBnd"], 16) == BOUNDING
    effective = BOUNDING if user == "root" else 0
    assert int(fields["CapPrm"], 16) == int(fields["CapEff"], 16) == effective
    assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0
    assert fields["Seccomp"] == "2"
    # Off, or sudo would not work.
    assert fields["NoNewPrivs"] == "0"


def test_sudo_gives_no_more_than_root_has(sandbox):
    assert sandbox.commands.run("sudo id -u").stdout == "0\n"
    fields = status_fields(sandbox.commands.run("sudo cat /proc/self/status").stdout)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == BOUNDING
    assert fields["Seccomp"] == "2"


def test_init_and_agent_have_no_more_either(sandbox):
    for pid in (1, 2):
        fields = status_fields(sandbox.commands.run(f"cat /proc/{pid}/status").stdout)
        assert int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == BOUNDING
        assert fields["Seccomp"] == "2"


@pytest.mark.parametrize("kind", NAMESPACES)
def test_namespaces_are_its_own(sandbox, own, kind):
    seen = {on_host(sandbox).namespace(kind), on_host(own()).namespace(kind), os.readlink(f"/proc/self/ns/{kind}")}
    assert len(seen) == 3


FOREIGN_CALL = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) {
    long result = 20; /* getpid of i386 */
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
    printf("%ld\n", result);
    return getpid() == result;
}
"""


def test_calls_of_32_bit_programs_are_refused(sandbox):
    sandbox.files.write("/tmp/foreign.c", FOREIGN_CALL)
    assert sandbox.commands.run("gcc -o /tmp/foreign /tmp/foreign.c && /tmp/foreign").stdout == "-38\n"


def test_secrets_of_the_kernel_are_masked(sandbox):
    for masked in ("/proc/keys", "/proc/timer_list", "/proc/kcore"):
        # Not merely unreadable, which depends on the kernel: /dev/null lies there.
        there = sandbox.commands.run(f"stat -c %F,%t,%T {masked} 2> /dev/null || true", user="root").stdout
        assert there == "character special file,1,3\n" or (there == "" and not Path(masked).exists()), masked
        assert sandbox.commands.run(f"cat {masked} 2> /dev/null | wc -c", user="root").stdout == "0\n", masked
    assert sandbox.commands.run("head -c 64 /proc/kcore 2> /dev/null | wc -c", user="root").stdout == "0\n"
    assert exit_code(sandbox, "dmesg", user="root") != 0
    # Where the kernel lies in memory helps whoever attacks it.
    addresses = sandbox.commands.run("cut -d ' ' -f 1 /proc/kallsyms 2> /dev/null | sort -u | head", user="root").stdout.split()
    assert [address for address in addresses if int(address, 16)] == []
    for pages in ("/proc/kpagecount", "/proc/kpageflags", "/proc/kmsg"):
        assert exit_code(sandbox, f"head -c 8 {pages}", user="root") != 0, pages


def test_devices_are_the_few_that_programs_need(sandbox):
    nodes = sandbox.commands.run("find /dev \\( -type b -o -type c \\) ! -path '/dev/pts/*' | sort", user="root").stdout
    assert nodes.split() == [f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")]
    elsewhere = "find / -xdev \\( -type b -o -type c \\) ! -path '/dev/*' 2> /dev/null"
    assert sandbox.commands.run(f"{elsewhere} | cat", user="root", timeout=60).stdout == ""


def test_a_fifo_and_a_socket_are_no_devices(sandbox):
    assert sandbox.commands.run("mkfifo /tmp/fifo && test -p /tmp/fifo && rm /tmp/fifo").exit_code == 0


def test_init_of_envd_is_not_for_the_inside(sandbox):
    """Root inside reaches envd's port, but does not know the key that /init needs."""
    ask = (
        "curl -s -o /dev/null -w '%{http_code}' -X POST -H 'Content-Type: application/json' "
        "-d '{\"accessToken\":\"mine\"}' http://127.0.0.1:49983/init"
    )
    assert sandbox.commands.run(ask, user="root").stdout == "401"
    assert sandbox.commands.run("echo the token is the old one").stdout == "the token is the old one\n"


def test_nothing_of_the_host_is_inside(sandbox, server, tmp_path):
    mark = tmp_path / "host-only"
    mark.write_text("host")
    for path in (mark, server.data, Path("/proc/1/root") / str(mark).lstrip("/")):
        assert exit_code(sandbox, f"test -e '{path}'", user="root") == 1, path
    # By every way up: `..` of the root, of the working directory of init, of the read-only bind.
    for path in ("/..", "/proc/1/cwd/..", "/proc/1/root/..", "/dev/shm/../..", "/usr/lib/soulbox/../../.."):
        assert sandbox.commands.run(f"stat -c %i:%d '{path}' /", user="root").stdout.split()[0] == sandbox.commands.run(
            "stat -c %i:%d /", user="root"
        ).stdout.strip(), path
    environment = sandbox.commands.run("cat /proc/1/environ; env", user="root").stdout
    assert str(server.data) not in environment and "SOULBOX" not in environment


def test_chroot_does_not_lead_out(sandbox):
    """The classic: a second chroot leaves the working directory above the root. It ends at the sandbox's own root."""
    climb = (
        "import os; os.makedirs('/tmp/jail', exist_ok=True); os.chroot('/tmp/jail'); "
        "[os.chdir('..') for _ in range(64)]; os.chroot('.'); print(os.stat('/').st_ino, os.path.exists('/usr/lib/soulbox/envd'))"
    )
    inode = sandbox.commands.run("stat -c %i /").stdout.strip()
    assert sandbox.commands.run(f'python3 -c "{climb}"', user="root").stdout == f"{inode} True\n"


def test_sandboxes_do_not_see_each_other(sandbox, own):
    other = own()
    mark = secrets.token_hex(8)
    other.files.write(f"/tmp/{mark}", "theirs")
    other.commands.run(f"exec -a {mark} sleep 600", background=True, timeout=0)
    assert other.commands.run(f"cat /proc/*/cmdline | tr '\\0' ' ' | grep -c '{mark} 600'").stdout == "1\n"
    theirs = on_host(other)
    look = "ls -R /tmp /dev/shm; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    assert other.commands.run(look, user="root").stdout.count(mark) >= 2
    assert mark not in sandbox.commands.run(look, user="root").stdout
    # The number that the host has for it means nothing inside, and System V objects and abstract sockets are per sandbox.
    assert exit_code(sandbox, f"kill -0 {theirs.pid}", user="root") != 0
    segment = "import ctypes; print(ctypes.CDLL(None).shmget({key}, 4096, {flags}))"
    assert other.commands.run(f'python3 -c "{segment.format(key=7777, flags=0o1666)}"').stdout != "-1\n"
    assert sandbox.commands.run(f'python3 -c "{segment.format(key=7777, flags=0)}"', user="root").stdout == "-1\n"


# --- what must run -------------------------------------------------------------------------------------------


def test_packages_can_be_installed_and_processes_traced(own):
    sandbox = own()
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends gdb strace"
    sandbox.commands.run(f"sudo sh -c '{install}' > /tmp/apt.log 2>&1 || {{ tail -5 /tmp/apt.log; exit 1; }}", timeout=110)
    traced = sandbox.commands.run("strace -f -o /tmp/trace sh -c 'cat /etc/hostname > /dev/null; true' && cat /tmp/trace")
    assert "execve(" in traced.stdout and "+++ exited with 0 +++" in traced.stdout
    sandbox.files.write("/tmp/a.c", "int square(int x) { return x * x; }\nint main(void) { return square(12) - 144; }\n")
    debug = "gcc -g -o /tmp/a /tmp/a.c && gdb -nx -batch -ex 'break square' -ex run -ex backtrace -ex finish -ex continue /tmp/a"
    shown = sandbox.commands.run(debug, timeout=60).stdout
    assert "square (x=12)" in shown and "Value returned is" in shown and "exited normally" in shown
    # A running program, attached to.
    attach = "sleep 600 & gdb -nx -batch -p $! -ex 'info proc' -ex detach; kill $!"
    assert "sleep 600" in sandbox.commands.run(attach, timeout=60).stdout


def test_pip_installs(sandbox):
    installed = "pip install --quiet --no-input six && python3 -c 'import six; print(six.__name__)'"
    assert sandbox.commands.run(installed, timeout=60).stdout == "six\n"


def test_git_commits_and_clones(sandbox):
    script = """
        set -e; cd "$(mktemp -d)"; git init -q a; cd a; git config user.email a@example.com; git config user.name a
        echo one > f; git add f; git commit -q -m one; cd ..; git clone -q a b; cat b/f
    """
    assert sandbox.commands.run(script).stdout == "one\n"


def test_gcc_threads_and_node_run(sandbox):
    threads = (
        "#include <pthread.h>\\n#include <stdio.h>\\nvoid *f(void *x) { return x; }\\n"
        'int main() { pthread_t t; for (int i = 0; i < 100; i++) { if (pthread_create(&t, 0, f, 0)) return 1; pthread_join(t, 0); } puts("100"); }'
    )
    assert sandbox.commands.run(f"printf '%b' '{threads}' | gcc -x c -pthread -o /tmp/t - && /tmp/t").stdout == "100\n"
    worker = (
        "const { Worker, isMainThread, parentPort } = require('worker_threads');"
        "new Worker('require(`worker_threads`).parentPort.postMessage(6 * 7)', { eval: true }).on('message', console.log)"
    )
    assert sandbox.commands.run(f'node -e "{worker}"'.replace("`", "\\`")).stdout == "42\n"


def test_multiprocessing_and_shared_memory_run(sandbox):
    script = """
import multiprocessing as m
from multiprocessing import shared_memory
if __name__ == '__main__':
    with m.Pool(4) as pool: print(sum(pool.map(abs, range(100))))
    made = shared_memory.SharedMemory(create=True, size=1 << 20); made.buf[0] = 7; made.close(); made.unlink()
"""
    sandbox.files.write("/tmp/m.py", script)
    assert sandbox.commands.run("python3 /tmp/m.py").stdout == "4950\n"


def test_ping_needs_no_privilege(sandbox):
    for user in ("user", "root"):
        assert " 0% packet loss" in sandbox.commands.run("ping -c 1 -W 2 127.0.0.1", user=user).stdout


def test_low_ports_need_no_privilege(sandbox):
    serve = "python3 -m http.server 80 --bind 127.0.0.1 > /dev/null 2>&1 & sleep 1; curl -s -o /dev/null -w '%{http_code}' localhost; kill %1"
    assert sandbox.commands.run(serve).stdout == "200"


def test_a_failing_command_still_says_so(sandbox):
    """The control of all of the above: a refusal inside reaches us as one."""
    with pytest.raises(CommandExitException):
        sandbox.commands.run("mount -t tmpfs none /mnt", user="root")
    with Sandbox.create("base") as other:
        assert other.commands.run("id -un").stdout == "user\n"
