"""Builds of templates by the official builder, and creates from what came out. Every template is deleted after it.

A build is timed from the builder's first request to the end that it hears of; it asks every 200 ms, which is part of every figure here. What
the server itself took is the difference between the first and the last line of a build's log.
"""

import time
import uuid
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from client import API, KEY, call, create, kill, warm_connection
from e2b import Sandbox, Template
from lifecycle import REFILL
from table import Table, timed

STEPS = 10
FILES = 10_000
LAYERS = 20


class Builds:
    """Templates of one measurement."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex[:12]
        self.names: set[str] = set()

    def build(self, name: str, steps) -> tuple[float, float]:
        """Milliseconds of the builder, and of the server."""
        name = f"bench-{self.mark}-{name}"
        self.names.add(name)
        at: list[datetime] = []
        template = steps(Template(file_context_path=self.folder).from_image("e2bdev/base").set_envs({"RUN": self.mark}))
        took, _ = timed(
            lambda: Template.build(template, name, on_build_logs=lambda entry: at.append(entry.timestamp))
        )
        # The builder tells lines of its own, whose times have no zone.
        at = [time for time in at if time.tzinfo]
        return took, (max(at) - min(at)).total_seconds() * 1000

    def end(self) -> None:
        for name in self.names:
            call(API, "DELETE", f"/templates/{name}", None, KEY)


def runs(template, last: str, count: int = STEPS):
    for number in range(count - 1):
        template = template.run_cmd(f"echo {number} > ~/step-{number}")
    return template.run_cmd(last)


def rebuilds(table: Table, builds: Builds) -> None:
    took, server = builds.build("steps", lambda t: runs(t, "echo first > ~/last"))
    table.value(f"build of {STEPS} steps, cold", took, "ms")
    table.value(f"build of {STEPS} steps, cold, at the server", server, "ms")
    same = [builds.build("steps", lambda t: runs(t, "echo first > ~/last")) for _ in range(table.samples(20, 3))]
    table.times(f"rebuild of {STEPS} steps, nothing changed", [it[0] for it in same])
    table.times(f"rebuild of {STEPS} steps, nothing changed, server", [it[1] for it in same], p50=150)
    changed = [
        builds.build("steps", lambda t: runs(t, f"echo {number} > ~/last"))
        for number in range(table.samples(10, 3))
    ]
    table.times(f"rebuild of {STEPS} steps, the last changed, server", [it[1] for it in changed], p50=1000)


def copies(table: Table, builds: Builds) -> None:
    tree = Path(builds.folder) / "tree"
    for number in range(FILES):
        folder = tree / str(number % 100)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(number)).write_text(f"{builds.mark} {number}\n")
    took, server = builds.build("copy", lambda t: t.copy("tree", "tree"))
    table.value(f"COPY of {FILES:,} files, with its upload", took, "ms")
    table.value(f"COPY of {FILES:,} files, at the server", server, "ms")
    again = [builds.build("copy", lambda t: t.copy("tree", "tree"))[0] for _ in range(table.samples(5, 2))]
    table.times(f"COPY of {FILES:,} files, nothing changed", again)


def layers(table: Table, builds: Builds) -> None:
    builds.build("layers", lambda t: runs(t, "true", LAYERS))
    name = f"bench-{builds.mark}-layers"

    def creates(template: str) -> list[float]:
        times = []
        for _ in range(table.samples(100, 20)):
            took, sandbox = timed(create, template)
            times.append(took)
            kill(sandbox)
            time.sleep(0.1)
        return times

    time.sleep(REFILL)
    deep = creates(name)
    # Nothing of `base` is made ahead for a build with a name of its own, so that is what it is compared with.
    builds.build("flat", lambda t: t)
    flat = creates(f"bench-{builds.mark}-flat")
    base = creates("base")
    table.times(f"create from {LAYERS} layers", deep)
    table.times("create from one layer more than base", flat)
    table.times("create from base", base)
    table.value(f"create from {LAYERS} layers / from one", sorted(deep)[len(deep) // 2] / sorted(flat)[len(flat) // 2], "times", most=1.1)


def started(table: Table, builds: Builds) -> None:
    serve = "cd /tmp && exec python3 -m http.server 8128"
    builds.build("started", lambda t: t.set_start_cmd(serve, "curl -s localhost:8128/ > /dev/null"))
    times = []
    for _ in range(table.samples(30, 5)):
        took, sandbox = timed(lambda: Sandbox.create(f"bench-{builds.mark}-started", timeout=60))
        times.append(took)
        sandbox.kill()
        time.sleep(0.1)
    table.times("create with a server that runs, Python SDK", times)


def measure(table: Table) -> None:
    warm_connection()
    with TemporaryDirectory(prefix="soulbox-bench-") as folder:
        builds = Builds(folder)
        try:
            for part in (rebuilds, copies, layers, started):
                part(table, builds)
        finally:
            builds.end()
