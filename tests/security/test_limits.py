"""A sandbox that takes all it can get: it is stopped at its limits, lives, and nobody else notices."""

import time
from pathlib import Path

import pytest
from conftest import exit_code, on_host
from e2b import CommandExitException, Sandbox, TimeoutException
from server import until

MIB = 1 << 20
# SIGKILL, as a shell says it.
KILLED = 137


def take(mebibytes: int) -> str:
    """A command that takes so much memory and touches it. With a shell around it, which lives to tell."""
    return f"python3 -c 'x = bytearray({mebibytes} << 20); x[::4096] = bytes(len(x[::4096])); print(len(x) >> 20)'; exit $?"


def answers(sandbox: Sandbox, within: float = 5) -> bool:
    return sandbox.commands.run("echo here", timeout=within).stdout == "here\n"


def memory_limit(sandbox: Sandbox) -> int:
    return int(on_host(sandbox).limit("memory", "memory.limit_in_bytes", "memory.max"))


def rss(pid: int | str) -> int:
    """Bytes of memory of a process of the host."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


# --- memory ------------------------------------------------------------------------------------------------


def test_memory_of_the_template(sandbox, neighbour):
    assert memory_limit(sandbox) == 1024 * MIB
    assert sandbox.commands.run(take(700)).stdout == "700\n"
    assert exit_code(sandbox, take(1500)) == KILLED
    assert answers(sandbox)
    assert answers(neighbour)


@pytest.mark.parametrize("limit", [256, 2048])
def test_memory_that_was_asked_for(own, limit):
    sandbox = own(memoryMB=limit)
    assert memory_limit(sandbox) == limit * MIB
    assert sandbox.commands.run(take(limit * 6 // 10)).stdout == f"{limit * 6 // 10}\n"
    assert exit_code(sandbox, take(limit * 5 // 4)) == KILLED
    assert answers(sandbox)
    assert sandbox.get_info().memory_mb == limit


def test_many_small_processes_share_one_limit(own):
    """The kernel ends programs of the sandbox, not its agent."""
    sandbox = own(memoryMB=256)
    hold = "python3 -c 'import time; x = bytes(range(256)) * (32 << 12); time.sleep(5)' & "
    sandbox.commands.run(hold * 20 + "wait; exit 0", timeout=60)
    assert answers(sandbox)


def test_memory_is_not_swapped_out(sandbox):
    process = on_host(sandbox)
    if Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists():
        assert process.limit("memory", "memory.memsw.limit_in_bytes", "-") == str(1024 * MIB)
    elif Path("/sys/fs/cgroup/cgroup.controllers").exists():
        assert process.limit("-", "-", "memory.swap.max") == "0"
    else:
        assert process.limit("memory", "memory.swappiness", "-") == "0"


def test_files_in_memory_count(own):
    """Neither memfd nor a deleted file of /dev/shm is a way around."""
    sandbox = own(memoryMB=256)
    fill = "import os; f = os.memfd_create('x'); [os.write(f, bytes(1 << 20)) for _ in range(400)]; print('took it')"
    assert exit_code(sandbox, f'python3 -c "{fill}"; exit $?') == KILLED
    assert answers(sandbox)


# --- processes ---------------------------------------------------------------------------------------------


FORK = r"""
import os, time
children = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(4)
            os._exit(0)
        children += 1
    except OSError as error:
        print(error.errno, children, flush=True)
        break
time.sleep(4)
"""


def test_processes_are_counted(own, neighbour):
    # So many forks of Python take about 1 GiB: with the template's limit, memory would sometimes end first.
    sandbox = own(memoryMB=4096)
    limit = int(on_host(sandbox).limit("pids", "pids.max", "pids.max"))
    sandbox.files.write("/tmp/fork.py", FORK)
    running = sandbox.commands.run("python3 /tmp/fork.py", background=True, timeout=60)
    assert answers(neighbour)
    errno, children = next(out for out, _, _ in running if out).split()
    assert int(errno) == 11  # EAGAIN
    assert limit - 50 < int(children) < limit
    # Full: a command is refused with an error, not a hang; files need no process.
    with pytest.raises(Exception) as refused:
        sandbox.commands.run("true", timeout=10)
    assert not isinstance(refused.value, TimeoutException)
    assert sandbox.files.exists("/tmp/fork.py")
    assert answers(neighbour)
    running.wait()
    until("it runs commands again", lambda: exit_code(sandbox, "true", timeout=10) == 0)


def test_a_fork_bomb_can_be_killed(own, neighbour):
    sandbox = own()
    process = on_host(sandbox)
    sandbox.commands.run("bash -c ':(){ :|:& };:' > /dev/null 2>&1", background=True, timeout=0)
    used = lambda: int(process.limit("pids", "pids.current", "pids.current"))
    until("the bomb has gone off", lambda: used() > 2000, 30)
    assert answers(neighbour, 10)
    started = time.monotonic()
    assert sandbox.kill()
    # A second is what it may take; five, where others use the machine too.
    assert time.monotonic() - started < 5
    until("the host is rid of its processes", lambda: not Path(f"/proc/{process.pid}").exists())
    assert not sandbox.is_running()
    assert answers(neighbour)


# --- what the kernel counts for all sandboxes of a host together -------------------------------------------


WATCHERS = """
import ctypes, resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
libc, made = ctypes.CDLL(None, use_errno=True), 0
while made < 4000 and libc.inotify_init1(0) >= 0: made += 1
print(made, ctypes.get_errno(), flush=True)
time.sleep(60)
"""


def test_inotify_instances_are_a_share(own, neighbour):
    """Root of the host's user namespace pays for all of them: one sandbox must not be able to take them all."""
    holding = []
    for sandbox in (own(), own()):
        sandbox.files.write("/tmp/watchers.py", WATCHERS)
        holding.append(sandbox.commands.run("python3 /tmp/watchers.py", user="root", background=True))
        made, errno = next(out for out, _, _ in holding[-1] if out).split()
        assert 500 < int(made) <= 1024 and int(errno) == 24  # EMFILE
    one = "import ctypes; print(ctypes.CDLL(None).inotify_init1(0))"
    assert int(neighbour.commands.run(f'python3 -c "{one}"').stdout) >= 0


# --- processor ---------------------------------------------------------------------------------------------


def quota(sandbox: Sandbox) -> float:
    """CPUs that the host lets it use."""
    process = on_host(sandbox)
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        allowed, period = process.limit("-", "-", "cpu.max").split()
    else:
        allowed, period = (process.limit("cpu", f"cpu.cfs_{part}_us", "-") for part in ("quota", "period"))
    return int(allowed) / int(period)


def test_processor_time(sandbox, own):
    assert quota(sandbox) == 2
    one = own(cpuCount=1)
    assert quota(one) == 1
    spin = """
import os, time
end = time.monotonic() + 2
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        while time.monotonic() < end: pass
        os._exit(0)
    children.append(child)
used = sum(sum(os.wait4(child, 0)[2][:2]) for child in children)
print(used)
"""
    one.files.write("/tmp/spin.py", spin)
    used = float(one.commands.run("python3 /tmp/spin.py").stdout)
    # Four that spin for two seconds would take as many CPUs as there are.
    assert used < 2 * 1.25


# --- disk --------------------------------------------------------------------------------------------------


def fill(path: str, mebibytes: int) -> str:
    """Writes bytes that do not compress; what became of it, and how many MiB lie there."""
    return (
        # The message does not go to a file: there may be no room for one.
        f"said=$(dd if=/dev/urandom of={path} bs=1M count={mebibytes} conv=fsync 2>&1) || echo \"${{said%%$'\\n'*}}\" | sed 's/.*: //';"
        f" stat -c %s {path} 2> /dev/null | awk '{{ print int($1 / 1048576) }}'"
    )


@pytest.mark.parametrize("path", ["/home/user/big", "/tmp/big", "/dev/shm/big"])
def test_disk(own, neighbour, path):
    sandbox = own(diskSizeMB=128)
    assert sandbox.commands.run(fill(path, 60), timeout=60).stdout == "60\n"
    outcome, written = sandbox.commands.run(fill(path, 200), timeout=60).stdout.splitlines()
    assert outcome in ("Disk quota exceeded", "No space left on device")
    assert 60 < int(written) <= 128
    # Everything of it is one quota: there is no room elsewhere either.
    for other in ("/home/user/more", "/tmp/more", "/dev/shm/more"):
        assert sandbox.commands.run(fill(other, 100), timeout=60).stdout.splitlines()[0] == outcome
    assert answers(sandbox)
    assert neighbour.commands.run(fill("/tmp/mine", 60), timeout=60).stdout == "60\n"
    # What is deleted can be used again.
    sandbox.commands.run("rm -f /home/user/* /tmp/* /dev/shm/*; sync")
    until("there is room", lambda: sandbox.commands.run(fill(path, 40), timeout=60).stdout == "40\n")


def test_many_small_files_count(own, neighbour):
    """Inodes are bytes of the quota, too."""
    sandbox = own(diskSizeMB=128)
    count = """
import os
os.makedirs('/tmp/many')
made = 0
try:
    for made in range(400_000):
        with open(f'/tmp/many/{made}', 'w') as f: f.write('x' * 100)
    print('no end', made)
except OSError as error:
    print(error.errno, made)
"""
    sandbox.files.write("/tmp/many.py", count)
    assert sandbox.commands.run(fill("/tmp/big", 100), timeout=60).stdout == "100\n"
    errno = sandbox.commands.run("python3 /tmp/many.py", timeout=90).stdout.split()[0]
    assert errno in ("28", "122")
    assert answers(sandbox)
    assert answers(neighbour)


# --- output ------------------------------------------------------------------------------------------------


def agent_of(process) -> int:
    """The host's number of envd: the parent of the parent of a command, or of the command."""
    pid = process.pid
    while "envd" not in (command := Path(f"/proc/{pid}/cmdline").read_text()).split("\0")[0]:
        pid = int(dict(l.split(":", 1) for l in Path(f"/proc/{pid}/status").read_text().splitlines())["PPid"])
        assert pid > 1, command
    return pid


def test_output_that_nobody_reads(own, neighbour, server):
    """It waits in bounded queues; its writer waits with it."""
    sandbox = own()
    agent = agent_of(on_host(sandbox))
    started = [sandbox.commands.run("yes $(head -c 2000 /dev/zero | tr '\\0' x)", background=True, timeout=0) for _ in range(4)]
    peak, end = 0, time.monotonic() + 4
    while time.monotonic() < end:
        peak = max(peak, rss(agent), rss(server.front()))
        assert answers(sandbox, 10) and answers(neighbour, 10)
    assert peak < 150 * MIB, f"{peak // MIB} MiB"
    for process in started:
        process.kill()
    assert exit_code(sandbox, "pgrep -x yes") == 1


def test_output_without_end_is_streamed(own, server):
    """Read by somebody, for as long as he likes; a time limit ends it."""
    sandbox = own()
    seen = 0

    def count(line: str) -> None:
        nonlocal seen
        seen += len(line)

    with pytest.raises(TimeoutException):
        sandbox.commands.run("yes", on_stdout=count, timeout=2)
    assert seen > 0
    assert answers(sandbox, 20)
    until("it was ended", lambda: exit_code(sandbox, "pgrep -x yes", timeout=10) == 1)
