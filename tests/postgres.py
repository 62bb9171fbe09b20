"""A PostgreSQL of a test's own: a temporary cluster on a unix socket, by the programs of Debian's `postgresql`.

It ends with the test, also when that is killed; its folder goes with it.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    assert found or shutil.which(name), "no PostgreSQL here: scripts/setup.sh packages"
    return str(found[-1]) if found else name


def _unprivileged() -> list[str]:
    """The programs refuse to run as root."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    raise AssertionError("there is neither a user postgres nor nobody")


class Cluster:
    """`durable` ones wait for the disk at each commit, as figures need it."""

    def __init__(self, durable: bool = False) -> None:
        self.durable = durable
        self.folder = Path(tempfile.mkdtemp(prefix="soulbox-postgres-"))
        self.server: subprocess.Popen | None = None
        self.databases = 0

    def start(self) -> "Cluster":
        as_user = _unprivileged()
        if as_user:
            uid, gid = (int(part.split("=")[1]) for part in as_user[:2])
            os.chown(self.folder, uid, gid)
        data = self.folder / "data"
        options = ["--auth=trust", "--username=soulbox", "--no-sync", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            ["setpriv", *as_user, _program("initdb"), "--pgdata", data, *options],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )
        assert made.returncode == 0, made.stderr
        self._run(data, as_user)
        return self

    def _run(self, data: Path, as_user: list[str]) -> None:
        self.server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "INT", *as_user, _program("postgres"), "-D", data, "-k", self.folder]
            + ["-c", "listen_addresses=", "-c", f"fsync={'on' if self.durable else 'off'}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / "log", "a"),
            cwd=self.folder,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while self._psql("postgres", "SELECT 1").returncode != 0:
            assert self.server.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def database(self) -> str:
        """The URL of a new and empty database."""
        self.databases += 1
        name = f"soulbox_{self.databases}"
        self.query("postgres", f"CREATE DATABASE {name}")
        return f"postgres://soulbox@localhost/{name}?host={self.folder}"

    def query(self, database: str, statement: str) -> str:
        said = self._psql(database, statement)
        assert said.returncode == 0, said.stderr
        return said.stdout.strip()

    def _psql(self, database: str, statement: str) -> subprocess.CompletedProcess:
        where = ["-U", "soulbox", "-d", database, "-h", str(self.folder)]
        arguments = [_program("psql"), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where, "-c", statement]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=30, cwd=self.folder)

    def end(self) -> None:
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
