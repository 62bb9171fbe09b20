"""Where processor time goes: samples by `perf`, summed by crate and by symbol, and as a flame graph. Outside the kernel, since what is
inside is the host's."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from flames import drawn
from table import Table

# That, and copying so many bytes of a stack each time, takes up to half of the speed: no figure is taken meanwhile.
PER_SECOND = 499
STACK = 16_384
# A crate's name begins the symbol, or follows the first `<`s, `&`s and the like of a method of a trait.
CRATE = re.compile(r"^[<&\s(\[*]*(?:mut |dyn |const )*([a-z_][a-z0-9_]*)::")
KERNEL = "[kernel.kallsyms]"
# Address, symbol, object.
FRAME = re.compile(r"^\s*[0-9a-f]+ (.+) \((.+)\)$")


class Profile:
    """Samples of processes for the time of a `with`; then rows of the table, and all of it in a file."""

    def __init__(self, table: Table, name: str, pids: list[int]) -> None:
        self.table, self.name = table, name
        self.pids = [str(pid) for pid in pids]
        self.perf: subprocess.Popen | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="soulbox-profile-")

    def __enter__(self) -> "Profile":
        why = "there is no perf here" if shutil.which("perf") is None else "no process is named" if not self.pids else None
        if why is not None:
            self.table.missing(f"{self.name}: where time goes", why)
            return self
        self.perf = subprocess.Popen(
            ["perf", "record", "--quiet", "-F", str(PER_SECOND), "-e", "cpu-clock", "-o", f"{self.folder.name}/samples"]
            # A release build keeps no frame pointers, so stacks are copied.
            + ["--call-graph", f"dwarf,{STACK}", "-p", ",".join(self.pids)],
            stdin=subprocess.DEVNULL,
            stderr=open(f"{self.folder.name}/said", "w"),
        )
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self.perf is not None:
                self.perf.send_signal(signal.SIGINT)
                self.perf.wait(60)
                if kind is None:
                    self.rows()
        finally:
            self.folder.cleanup()

    def rows(self) -> None:
        stacks = self.stacks()
        samples = Counter()
        for stack, count in stacks.items():
            samples[stack[-1]] += count
        total = samples.total()
        if not total:
            self.table.missing(self.name, f"perf took no samples: {Path(self.folder.name, 'said').read_text().strip()}")
            return
        kernel = sum(count for (where, _), count in samples.items() if where == KERNEL)
        outside = Counter({entry: count for entry, count in samples.items() if entry[0] != KERNEL})
        crates: Counter = Counter()
        for (where, symbol), count in outside.items():
            crates[crate(where, symbol)] += count
        percent = lambda count, of: f"{100 * count / max(1, of):.1f}"  # noqa: E731
        self.table.shares(f"{self.name}: in the kernel", {"kernel": percent(kernel, total), "outside": percent(total - kernel, total)}, total)
        most = {name: percent(count, total - kernel) for name, count in crates.most_common(12)}
        self.table.shares(f"{self.name}: outside, by crate", most, total - kernel)
        symbols = {symbol: percent(count, total - kernel) for (_, symbol), count in outside.most_common(12)}
        self.table.shares(f"{self.name}: outside, by function", symbols, total - kernel)
        flames: Counter = Counter()
        for stack, count in stacks.items():
            names = [symbol for where, symbol in stack if where != KERNEL]
            flames[(*names, *(["kernel"] if stack[-1][0] == KERNEL else []))] += count
        self.table.flame(self.name, drawn(self.name, flames))

    def stacks(self) -> Counter:
        """How many, by stack: objects and symbols, outermost first."""
        said = subprocess.run(
            ["perf", "script", "-i", f"{self.folder.name}/samples", "-F", "ip,sym,dso", "--no-inline"],
            capture_output=True,
            text=True,
            timeout=600,
        )
        found: Counter = Counter()
        for block in said.stdout.split("\n\n"):
            frames = [FRAME.match(line) for line in block.splitlines()]
            # Innermost first.
            stack = tuple((Path(it[2]).name if it[2].startswith("/") else it[2], it[1]) for it in reversed(frames) if it)
            if stack:
                found[stack] += 1
        return found


def crate(where: str, symbol: str) -> str:
    """Whose function it is: a crate of Rust, the allocator, SQLite, or the object that it is in."""
    found = CRATE.match(symbol)
    if found:
        return found[1]
    if re.match(r"^_*(libc_)?(malloc|calloc|realloc|free|cfree|int_malloc|int_free|malloc_consolidate|unlink_chunk)", symbol):
        return "malloc"
    # The only C of ours that runs on these ways is SQLite.
    return where if where.startswith(("lib", "[", "ld-")) else "C: SQLite"
