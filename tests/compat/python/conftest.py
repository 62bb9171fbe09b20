"""Fixtures of the compatibility suite: the official package against the server of E2B_API_URL and E2B_SANDBOX_URL.

Tests share sandboxes where they leave no trace that matters; what ends or times a sandbox gets its own.
"""

import os
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
from e2b import Sandbox

TEMPLATE = os.environ.get("SOULBOX_TEST_TEMPLATE", "base")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def request(method: str, url: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Answer:
    """A plain HTTP request, for what no SDK sends."""
    made = urllib.request.Request(url, method=method, headers=headers or {}, data=body)
    try:
        with urllib.request.urlopen(made, timeout=20) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def through_ingress(sandbox_id: str, port: int, path: str = "/", **more) -> Answer:
    """Asks a port of a sandbox as a user's browser or program would, by the one URL that serves all sandboxes."""
    headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)} | more.pop("headers", {})
    return request(more.pop("method", "GET"), os.environ["E2B_SANDBOX_URL"] + path, headers, **more)


def api(method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Asks the API with this test's key unless the headers say otherwise."""
    sent = {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"} | headers
    return request(method, os.environ["E2B_API_URL"] + path, {k: v for k, v in sent.items() if v}, body)


@pytest.fixture(scope="module")
def sandbox():
    """One sandbox for the tests of a module that only use it."""
    with Sandbox.create(TEMPLATE, timeout=600) as made:
        yield made


@pytest.fixture
def own():
    """Makes sandboxes for this test alone: `own(timeout=5)`."""
    made = []

    def make(**options) -> Sandbox:
        made.append(Sandbox.create(TEMPLATE, **({"timeout": 120} | options)))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()
