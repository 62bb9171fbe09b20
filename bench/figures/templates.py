"""Builds of templates by the official builder and by `soulbox template build`, and creates from what came out. Every template is deleted
after it.

A build by the official builder is timed from its first request to the end that it hears of; it asks every 200 ms, which is part of its
figures. What the server itself took is the difference between the first and the last line of a build's log. Our command line and `buildah`
are timed as whole processes.
"""

import os
import shutil
import subprocess
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
BINARY = os.environ.get("BENCH_BINARY")
REPOSITORY = Path(__file__).resolve().parents[2]
QUIET = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}


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

    def command(self, name: str, dockerfile: str, *flags: str) -> float:
        """Milliseconds of `soulbox template build`."""
        name = f"bench-{self.mark}-{name}"
        self.names.add(name)
        folder = Path(self.folder) / name
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(dockerfile)
        took, _ = timed(lambda: subprocess.run([BINARY, "template", "build", folder, "--name", name, *flags], **QUIET))
        return took

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


def commands(table: Table, builds: Builds) -> None:
    """The same by our command line, to its exit."""

    def steps(last: str) -> str:
        lines = [f"FROM e2bdev/base\nENV RUN={builds.mark}", *(f"RUN echo {number} > ~/step-{number}" for number in range(STEPS - 1))]
        return "\n".join([*lines, f"RUN {last}"]) + "\n"

    builds.command("command", steps("true"))
    same = [builds.command("command", steps("true")) for _ in range(table.samples(20, 5))]
    table.times(f"soulbox template build, {STEPS} steps, nothing changed", same, p50=150)
    changed = [builds.command("command", steps(f": {number}")) for number in range(table.samples(10, 3))]
    table.times(f"soulbox template build, {STEPS} steps, the last changed", changed, p50=1000)


class Peer:
    """`buildah bud` on an image with the root of `base`, in a store of its own."""

    def __init__(self, folder: str, root: str) -> None:
        self.folder = Path(folder) / "buildah"
        self.folder.mkdir()
        store = [f"--root={self.folder}/root", f"--runroot={self.folder}/run", f"--storage-driver={DRIVER}"]
        self.buildah = ["buildah", *store]
        made = subprocess.run([*self.buildah, "from", "scratch"], check=True, text=True, capture_output=True).stdout.strip()
        subprocess.run([*self.buildah, "add", made, root, "/"], **QUIET)
        subprocess.run([*self.buildah, "commit", "--rm", made, "localhost/base"], **QUIET)

    def build(self, dockerfile: str, *flags: str) -> float:
        context = self.folder / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        command = [*self.buildah, "bud", "--layers", "--isolation=chroot", "--pull=never", *flags, "--tag=localhost/bench", context]
        return timed(lambda: subprocess.run(command, **QUIET))[0]

    def end(self) -> None:
        # Its store has mounts while containers are there.
        subprocess.run([*self.buildah, "rm", "--all"], **QUIET)
        subprocess.run([*self.buildah, "rmi", "--all", "--force"], **QUIET)


DRIVER = "overlay"
PIP = """FROM {base}
USER root
RUN echo {mark} > /mark
RUN pip install --no-cache-dir --quiet requests==2.32.3 flask==3.0.3 six==1.16.0
RUN python3 -c 'import flask, requests, six'
"""


def pip(table: Table, builds: Builds) -> None:
    """A template with packages of Python, against `buildah bud` with the same steps. Both fetch from the same index, with nothing kept."""
    if table.root is None or shutil.which("buildah") is None:
        table.missing("pip template / buildah bud", "scripts/setup.sh bench installs buildah, and BENCH_ROOT is its image")
        return
    peer = Peer(builds.folder, table.root)
    try:
        rounds = range(table.samples(5, 2))
        ours, theirs = PIP.format(base="e2bdev/base", mark=builds.mark), PIP.format(base="localhost/base", mark=builds.mark)
        # Turn about, so that a slow index is slow for both.
        cold = [(builds.command("pip", ours, "--no-cache"), peer.build(theirs, "--no-cache")) for _ in rounds]
        warm = [(builds.command("pip", ours), peer.build(theirs)) for _ in rounds]
    finally:
        peer.end()
    for name, pairs, most in (("cold", cold, 1.0), ("nothing changed", warm, 0.5)):
        own, other = zip(*pairs)
        table.times(f"pip template, {name}", list(own))
        table.times(f"peer: buildah bud, {name}", list(other))
        table.ratio(f"pip template / buildah bud, {name}", list(own), list(other), most=most)


def from_nothing(table: Table) -> None:
    """`base` in a data directory of its own, with nothing fetched before."""
    with TemporaryDirectory(prefix="soulbox-bench-") as data:
        build = [BINARY, "template", "build", REPOSITORY / "templates/base", "--data-dir", data]
        try:
            cold, again = (timed(lambda: subprocess.run(build, **QUIET))[0] for _ in range(2))
        finally:
            subprocess.run([BINARY, "clean", "--data-dir", data], **QUIET)
    table.value("base from nothing", cold / 1000, "s", most=90)
    table.value("base when it is there", again / 1000, "s", most=5)
    if table.root is not None:
        used = subprocess.run(["du", "-s", "-B1M", table.root], check=True, capture_output=True, text=True).stdout
        table.value("base on disk", float(used.split()[0]), "MiB", most=1024)


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
    # A build with a name of its own has few slots ahead, and `base` at least a quarter, so that is what it is compared with.
    builds.build("flat", lambda t: t)
    flat = creates(f"bench-{builds.mark}-flat")
    base = creates("base")
    table.times(f"create from {LAYERS} layers", deep)
    table.times("create from one layer more than base", flat, p50=6, p99=15)
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
            if BINARY is None:
                table.missing("soulbox template build", "no BENCH_BINARY")
                return
            for part in (commands, pip):
                part(table, builds)
        finally:
            builds.end()
    from_nothing(table)
