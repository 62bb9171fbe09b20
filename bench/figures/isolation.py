"""What isolation costs: memory of idle sandboxes."""

import time

from client import create, kill
from table import Table


def used_memory() -> float:
    """MiB that are neither free nor cache."""
    with open("/proc/meminfo") as file:
        fields = {line.split(":")[0]: int(line.split()[1]) for line in file}
    return (fields["MemTotal"] - sum(fields[key] for key in ("MemFree", "Buffers", "Cached", "SReclaimable"))) / 1024


def idle_memory(count: int) -> float:
    first = create()
    time.sleep(3)
    before = used_memory()
    more = [create() for _ in range(count)]
    time.sleep(3)
    each = (used_memory() - before) / count
    for sandbox in [first, *more]:
        kill(sandbox)
    return each


def measure(table: Table) -> None:
    table.value("idle sandbox, memory of the host", idle_memory(table.samples(100)), "MiB", most=2)
