"""`soulbox agent` as its users have it: the binary, a real server, and the loopback provider in place of a model."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import served
from served import BINARY, TEMPLATE, ask

FAKE = str(Path(os.environ.get("SOULBOX_FAKE_PROVIDER", "target/ci/soulbox-fake-provider")).resolve())
# No part of a key that a test may find where it must not be.
CANARY = "canary-7f3a9c51d2"


def sandboxes() -> list[str]:
    return served.sandboxes("soulboxAgent")


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
    served.end_all("soulboxAgent")


def environment(fake: Fake | None, key: str = CANARY) -> dict[str, str]:
    return served.environment() | (fake.environment(key) if fake else {})


class Ran:
    def __init__(self, done: subprocess.CompletedProcess) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- out\n{self.out[-3000:]}\n--- err\n{self.err[-3000:]}"


@pytest.fixture
def agent(fake, tmp_path):
    """Runs the agent to its end with the loopback provider."""

    def run(
        task: str,
        *flags: str,
        provider: str = "anthropic",
        template: str | None = TEMPLATE,
        key: str = CANARY,
        within: float = 120,
        variables: dict[str, str] | None = None,
    ) -> Ran:
        command = [BINARY, "agent", task, "--provider", provider, "--output", str(tmp_path / "output"), *flags]
        command += ["--template", template] if template else []
        env = environment(fake, key) | (variables or {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=within, env=env, stdin=subprocess.DEVNULL, cwd=tmp_path)
        return Ran(done)

    return run


def results(request: dict) -> list[str]:
    """What Anthropic's model was told of its calls, without pictures."""
    return ["".join(part["text"] for part in block["content"] if part["type"] == "text") for block in request["body"]["messages"][-1]["content"]]


def scenario(*turns: dict) -> str:
    """A prompt that brings its own scenario along."""
    return f"Do it.\n```scenario\n{json.dumps({'turns': turns})}\n```"
