"""`soulbox mcp` against the official Python client.

E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL name the server, SOULBOX_BINARY the program, INTERPRETER_TEMPLATE the template;
tests/integrations/run.sh sets them.
"""

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

BINARY = str(Path(os.environ.get("SOULBOX_BINARY", "target/ci/soulbox")).resolve())
TEMPLATE = os.environ.get("INTERPRETER_TEMPLATE", "code-interpreter-slim")
TOKEN = "token-of-these-tests"


def environment() -> dict[str, str]:
    kept = ("PATH", "HOME", "E2B_", "LANG", "RUST_")
    return {name: value for name, value in os.environ.items() if name.startswith(kept)}


def api(method: str, path: str, body: dict | None = None):
    request = urllib.request.Request(os.environ["E2B_API_URL"] + path, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("X-API-Key", os.environ["E2B_API_KEY"])
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def sandboxes() -> list[str]:
    """Those that run and are of these tests."""
    return [one["sandboxID"] for one in api("GET", "/sandboxes") if "soulboxMcp" in one.get("metadata", {})]


class Http:
    """A server over HTTP, and where it is."""

    def __init__(self, *flags: str) -> None:
        command = [BINARY, "mcp", "--http", "127.0.0.1:0", "--template", TEMPLATE, *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment() | {"SOULBOX_MCP_TOKEN": TOKEN})
        self.url = self.process.stderr.readline().split()[-1]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


@pytest.fixture(autouse=True)
def nothing_left():
    """Whatever a test did, no sandbox of it runs afterwards. Set up before a server and so looked at after its end."""
    yield
    left = sandboxes()
    for sandbox in left:
        api("DELETE", f"/sandboxes/{sandbox}")
    assert left == []


@pytest.fixture
def http(nothing_left):
    server = Http()
    yield server
    if server.process.poll() is None:
        assert server.stop() == 0
