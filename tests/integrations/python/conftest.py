"""Fixtures of the Python package's suite: a provider on loopback and the server of E2B_API_URL and E2B_SANDBOX_URL.

SOULBOX_FAKE_PROVIDER is the provider's binary, INTERPRETER_TEMPLATE a template with the code interpreter.
"""

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from e2b_code_interpreter import Sandbox, SandboxQuery, SandboxState

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = os.environ.setdefault("INTERPRETER_TEMPLATE", "code-interpreter-slim")
# What programs of the documentation run with.
os.environ["SOULBOX_TEMPLATE"] = TEMPLATE
PROVIDER = Path(os.environ.get("SOULBOX_FAKE_PROVIDER", ROOT / "target/ci/soulbox-fake-provider"))
SINE = """import numpy, matplotlib.pyplot as plt
x = numpy.linspace(0, 6, 50)
plt.plot(x, numpy.sin(x), label='sine')
plt.title('A wave')
plt.show()"""
PNG = b"\x89PNG\r\n\x1a\n"


def please(*blocks: str) -> str:
    """A prompt from which the provider takes the code that it then writes."""
    fenced = "".join(f"```python\n{code}\n```\n" for code in blocks)
    return f"Run this:\n{fenced}Then tell me what came out."


class Fake:
    """The provider on loopback, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        arguments = [PROVIDER, "--listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0", "--tls-ca", self.ca]
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        said = [self.process.stdout.readline() for _ in range(2)]
        urls = [line.removeprefix("listening on ").strip() for line in said]
        self.http = next(url for url in urls if url.startswith("http://"))
        self.https = next(url for url in urls if url.startswith("https://"))

    def ask(self, method: str, path: str, body=None):
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.http + path, sent, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def requests(self, provider: str | None = None) -> list[dict]:
        """Those to models, the newest last."""
        return [one for one in self.ask("GET", "/_requests") if one.get("model") and provider in (None, one["provider"])]

    def scenario(self, name: str, *turns: dict) -> str:
        """The name of a model that does this."""
        self.ask("PUT", f"/_scenarios/{name}", {"turns": list(turns)})
        return f"fake-{name}"


@pytest.fixture(scope="session")
def _provider(tmp_path_factory):
    made = Fake(tmp_path_factory.mktemp("provider"))
    yield made
    made.process.terminate()
    made.process.wait(10)


@pytest.fixture
def fake(_provider):
    _provider.ask("DELETE", "/_requests")
    return _provider


def live() -> set[str]:
    """Sandboxes of this key, paused ones too."""
    pages, found = Sandbox.list(query=SandboxQuery(state=[SandboxState.RUNNING, SandboxState.PAUSED])), set()
    while pages.has_next:
        found |= {one.sandbox_id for one in pages.next_items()}
    return found


@pytest.fixture
def nothing_left():
    """That the test leaves no sandbox behind."""
    before = live()
    yield
    deadline = time.monotonic() + 30
    while left := live() - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def sandbox():
    """One sandbox for the tests of a module that only use it."""
    with Sandbox.create(TEMPLATE, timeout=600) as made:
        yield made


def program(path: Path, language: str) -> str:
    """The whole program of a page: the first fenced block under the heading of its language."""
    lines = iter(path.read_text().splitlines())
    assert any(line == f"## {language}" for line in lines), f"{path} has no `## {language}`"
    assert any(line.startswith(f"```{language.lower()}") for line in lines), f"{path} has no program under `## {language}`"
    code = []
    for line in lines:
        if line == "```":
            return "\n".join(code) + "\n"
        code.append(line)
    raise AssertionError(f"the program of {path} has no end")
