"""The real server as the suites in Python drive it: started, killed and started again.

SOULBOX_BINARY and SOULBOX_DATA_DIR say which; the data dir has the base template and no other server runs on it.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

BINARY = str(Path(os.environ.get("SOULBOX_BINARY", "target/ci/soulbox")).resolve())
DATA = Path(os.environ.get("SOULBOX_DATA_DIR", "target/test-data")).resolve()
# What `scripts/setup.sh criu` unpacks; without it a server looks for one itself.
CRIU = Path(__file__).resolve().parent.parent / ".cache/criu"
if CRIU.is_dir():
    os.environ.setdefault("SOULBOX_CRIU", str(CRIU))


def until(what: str, condition, within: float = 10.0) -> float:
    """Waits for a condition; how long it took, in seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within, f"not within {within} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*arguments: str, within: tuple[str, ...] = (), **more) -> subprocess.CompletedProcess:
    """The binary to its end, with what it said. `within` is a command that runs it in other namespaces."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SOULBOX_")} | more.pop("env", {})
    return subprocess.run(
        [*within, BINARY, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        stdin=subprocess.DEVNULL,
        **more,
    )


class Server:
    """`soulbox serve` on a data dir; the port stays the same over restarts. `within` is as in [`run`]."""

    def __init__(self, data: Path = DATA, within: tuple[str, ...] = (), host: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.data = data
        self.within = within
        self.host = host
        self.log = data / "e2e.log"

    def start(self, *flags: str) -> "Server":
        self.process = subprocess.Popen(
            [*self.within, BINARY, "serve", "--data-dir", str(self.data), "--listen", f"{self.host}:{self.port}", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.log, "a"),
        )
        until("the server answers", self.answers, 60)
        key = json.loads((self.data / "credentials.json").read_text())["api_key"]
        url = f"http://127.0.0.1:{self.port}"
        os.environ |= {"E2B_API_KEY": key, "E2B_API_URL": url, "E2B_SANDBOX_URL": url}
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, f"the server ended: {self.log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def front(self) -> int | None:
        """The process that talks to the world: a child of the agent."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for pid in " ".join(path.read_text() for path in children).split():
            try:
                if b"front" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2]:
                    return int(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return None

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        """Ends it and every sandbox, and gives everything back, whatever state it is in."""
        if self.process and self.process.poll() is None:
            self.stop()
        cleaned = run("clean", "--data-dir", str(self.data), within=self.within)
        assert cleaned.returncode == 0, cleaned.stderr
