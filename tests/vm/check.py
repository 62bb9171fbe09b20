"""What the server must do on a machine with cgroup v2 only, through the official package.

The machine is emulated and slow: nothing here measures. `console` is what the machine has printed so far.
"""

import re
import sys
import time
from pathlib import Path

from e2b import CommandExitException, Sandbox

PATIENCE = 180
WAIT = {"timeout": PATIENCE, "request_timeout": PATIENCE}
console = Path(sys.argv[1])


def cgroups() -> int:
    """How many cgroups of sandboxes and slots there are, as the machine last said."""
    return int(re.findall(r"vm: cgroups (\d+)", console.read_text(errors="replace"))[-1])


def settles(what: str, holds) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(2)


assert "cgroup v2" in console.read_text(errors="replace"), "doctor has found another version"
sandbox = Sandbox.create(timeout=1800, request_timeout=PATIENCE)
run = lambda command: sandbox.commands.run(command, **WAIT)

# The cgroup is the root of what is seen inside, and cannot be left.
assert run("cat /proc/self/cgroup").stdout.strip() == "0::/"
assert run("sudo mkdir /sys/fs/cgroup/x 2>&1 || echo refused").stdout.strip().endswith("refused")

# Memory: the program ends, the daemon does not.
try:
    run("python3 -c 'held = []\nwhile True: held.append(bytearray(32 << 20))'")
    raise AssertionError("a program took all the memory that it wanted")
except CommandExitException:
    pass
assert run("echo alive").stdout == "alive\n"

# Processes, CPU: what the kernel was told. To run into the first takes an emulated machine minutes.
pids, cpu = re.findall(r"vm: limits (\d+) (\d+) 100000", console.read_text(errors="replace"))[-1]
assert 100 < int(pids) < 20_000 and int(cpu) == 200_000, (pids, cpu)

# The counters are those of its cgroup.
settles("metrics come", lambda: sandbox.get_metrics(request_timeout=PATIENCE))
sample = sandbox.get_metrics(request_timeout=PATIENCE)[-1]
assert 0 < sample.mem_used < sample.mem_total == 1 << 30, sample
assert any(sample.cpu_used_pct > 1 for sample in sandbox.get_metrics(request_timeout=PATIENCE))

# A kill gives the cgroup back; slots made ahead have one each.
seen = cgroups()
time.sleep(10)
assert cgroups() == seen, "slots are still being made"
assert sandbox.kill(request_timeout=PATIENCE)
settles("its cgroup goes", lambda: cgroups() == seen - 1)
print("cgroup v2: all as it must be")
