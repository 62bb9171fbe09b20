"""Fixtures of the code interpreter's suite: the official package against the server of E2B_API_URL and E2B_SANDBOX_URL.

The data dir has the template that INTERPRETER_TEMPLATE names, else `code-interpreter-v1`, which is what the package asks for by itself.
"""

import http.client
import json
import os
import urllib.parse
from threading import Thread

import pytest
from e2b_code_interpreter import Sandbox

# Absent: whatever the package asks for.
TEMPLATE = os.environ.get("INTERPRETER_TEMPLATE")


@pytest.fixture(scope="module")
def sandbox():
    """One sandbox for the tests of a module that only use it."""
    with Sandbox.create(TEMPLATE, timeout=600) as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def silent(request):
    """Starts a cell that says nothing for 70 s, if a test asks for it; called, it waits for the end. Longer than many a proxy lets a connection be silent."""
    answers = []
    if not any("silent" in item.fixturenames and "ci_025" in item.name for item in request.session.items):
        yield None
        return

    def run() -> None:
        with Sandbox.create(TEMPLATE, timeout=600) as sandbox:
            answers.append(sandbox.run_code("import time; time.sleep(70); 7", timeout=0))

    running = Thread(target=run, daemon=True)
    running.start()

    def wait() -> list:
        running.join(100)
        return answers

    yield wait
    running.join(100)


@pytest.fixture
def own():
    """Makes sandboxes for this test alone."""
    made = []

    def make(**options) -> Sandbox:
        made.append(Sandbox.create(TEMPLATE, **({"timeout": 300} | options)))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


class Port:
    """Port 49999 of a sandbox, for what the package does not send or does not show."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.to = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49999"}
        self.netloc = urllib.parse.urlparse(os.environ["E2B_SANDBOX_URL"]).netloc

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.netloc, timeout=60)

    def ask(self, method: str, path: str, body=None, headers=None, connection=None):
        """Status, headers and text of an answer. A body that is not bytes is sent as JSON."""
        asking = connection or self.connection()
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        asking.request(method, path, sent, self.to | {"Content-Type": "application/json"} | (headers or {}))
        answer = asking.getresponse()
        text = answer.read().decode()
        if not connection:
            asking.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text

    def lines(self, code: str, **more) -> list[dict]:
        status, _, text = self.ask("POST", "/execute", {"code": code} | more)
        assert status == 200, text
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def port(sandbox):
    return Port(sandbox)
