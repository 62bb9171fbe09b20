"""`soulbox mcp` against the official Python client."""

import subprocess

import pytest
import served
from served import BINARY, TEMPLATE, environment

TOKEN = "token-of-these-tests"


def sandboxes() -> list[str]:
    return served.sandboxes("soulboxMcp")


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
    served.end_all("soulboxMcp")


@pytest.fixture
def http(nothing_left):
    server = Http()
    yield server
    if server.process.poll() is None:
        assert server.stop() == 0
