"""`soulbox agent` as its users have it: the binary, a real server, and the loopback provider in place of a model.

E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL name the server, SOULBOX_BINARY and SOULBOX_FAKE_PROVIDER the programs,
INTERPRETER_TEMPLATE the template; tests/integrations/run.sh sets them.
"""

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

BINARY = str(Path(os.environ.get("SOULBOX_BINARY", "target/ci/soulbox")).resolve())
FAKE = str(Path(os.environ.get("SOULBOX_FAKE_PROVIDER", "target/ci/soulbox-fake-provider")).resolve())
TEMPLATE = os.environ.get("INTERPRETER_TEMPLATE", "code-interpreter-slim")
# No part of a key that a test may find where it must not be.
CANARY = "canary-7f3a9c51d2"


def ask(url: str, method: str = "GET", body: dict | None = None, key: str | None = None):
    request = urllib.request.Request(url, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("X-API-Key", key)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def sandboxes(kind: str = "soulboxAgent") -> list[dict]:
    """Those that run and are of these tests."""
    listed = ask(f"{os.environ['E2B_API_URL']}/sandboxes", key=os.environ["E2B_API_KEY"])
    return [sandbox for sandbox in listed if kind in sandbox.get("metadata", {})]


def kill(sandbox_id: str) -> None:
    ask(f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox_id}", "DELETE", key=os.environ["E2B_API_KEY"])


class Fake:
    def __init__(self) -> None:
        self.process = subprocess.Popen([FAKE, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]

    def requests(self) -> list[dict]:
        return ask(f"{self.url}/_requests")

    def answers(self) -> list[dict]:
        """Requests for answers of a model."""
        return [request for request in self.requests() if request["body"]]

    def environment(self, key: str = CANARY) -> dict[str, str]:
        """All providers, with one key, at this address."""
        names = {"anthropic": "ANTHROPIC", "mistral": "MISTRAL", "groq": "GROQ", "together": "TOGETHER", "fireworks": "FIREWORKS"}
        variables = {f"{name}_API_KEY": key for name in [*names.values(), "OPENAI", "WATSONX"]}
        variables |= {f"{name}_BASE_URL": f"{self.url}/{root}" for root, name in names.items()}
        return variables | {
            "OPENAI_BASE_URL": f"{self.url}/compatible",
            "WATSONX_URL": f"{self.url}/watsonx",
            "WATSONX_IAM_URL": f"{self.url}/watsonx/identity/token",
            "WATSONX_PROJECT_ID": "project",
        }


@pytest.fixture(scope="session")
def one_fake():
    fake = Fake()
    yield fake
    fake.process.kill()
    fake.process.wait(10)


@pytest.fixture
def fake(one_fake):
    ask(f"{one_fake.url}/_requests", "DELETE")
    return one_fake


@pytest.fixture(autouse=True)
def nothing_left():
    """Whatever a test did, no sandbox of it runs afterwards."""
    yield
    left = sandboxes()
    for sandbox in left:
        kill(sandbox["sandboxID"])
    assert left == []


def environment(fake: Fake | None, key: str = CANARY) -> dict[str, str]:
    kept = ("PATH", "HOME", "E2B_", "LANG", "RUST_")
    clean = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    return clean | (fake.environment(key) if fake else {})


class Ran:
    def __init__(self, done: subprocess.CompletedProcess) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- out\n{self.out[-3000:]}\n--- err\n{self.err[-3000:]}"


@pytest.fixture
def agent(fake, tmp_path):
    """Runs the agent to its end with the loopback provider."""

    def run(task: str, *flags: str, provider: str = "anthropic", template: str = TEMPLATE, key: str = CANARY, within: float = 60) -> Ran:
        command = [BINARY, "agent", task, "--provider", provider, "--template", template, "--output", str(tmp_path / "output"), *flags]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=within, env=environment(fake, key), stdin=subprocess.DEVNULL, cwd=tmp_path
        )
        return Ran(done)

    return run


def scenario(*turns: dict) -> str:
    """A prompt that brings its own scenario along."""
    return f"Do it.\n```scenario\n{json.dumps({'turns': turns})}\n```"
