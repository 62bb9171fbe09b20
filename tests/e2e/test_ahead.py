"""Sandboxes of a template that is used begin in slots that were made ahead; told by the operator's figures, not by a clock."""

import re
import urllib.request

import pytest
from conftest import Server, free_port, until
from e2b import Sandbox, Template
from footprint import Objects

AHEAD = 4


class Ahead:
    """A server with few slots and a template of its own."""

    def __init__(self, server: Server, figures: str) -> None:
        self.server = server
        self.figures = figures
        self.name = f"ahead-{server.port}"

    def build(self, mark: str) -> None:
        Template.build(Template().from_template("base").run_cmd(f"echo {mark} > /home/user/mark"), self.name)

    def figure(self, name: str) -> int:
        with urllib.request.urlopen(f"http://{self.figures}/metrics", timeout=10) as answer:
            return int(re.search(rf"(?m)^soulbox_node_{name} (\d+)$", answer.read().decode())[1])

    def is_full(self) -> bool:
        return self.figure("slots_ahead") == AHEAD

    def create(self) -> tuple[bool, str]:
        """Whether it began in a slot ahead, and what its template wrote."""
        before = self.figure("creates_ahead")
        with Sandbox.create(self.name, timeout=60) as sandbox:
            return self.figure("creates_ahead") == before + 1, sandbox.commands.run("cat /home/user/mark; ls -A /tmp").stdout


@pytest.fixture
def ahead():
    server, figures = Server(), f"127.0.0.1:{free_port()}"
    try:
        yield Ahead(server.start("--warm", str(AHEAD), "--parked", "0", "--admin-listen", figures), figures)
    finally:
        server.end()


def test_later_creates_of_a_template_begin_in_slots_ahead(ahead):
    ahead.build("first")
    assert ahead.create() == (False, "first\n"), "nobody could know of it before"
    until("the default template has all slots", ahead.is_full, 60)
    assert ahead.create() == (False, "first\n")
    # It is used twice, so it has slots now: those after it begin there, each in one that nobody was in before.
    until("its slots are there", lambda: ahead.create() == (True, "first\n"), 60)
    until("the stock is full", ahead.is_full, 60)
    assert ahead.create() == (True, "first\n")

    # A new version is not begun in a slot of the one before.
    until("the stock is full", ahead.is_full, 60)
    ahead.build("second")
    assert ahead.create() == (False, "second\n")

    # It dies with slots of two templates ahead, and the next one finds them all.
    until("its slots are there", lambda: ahead.create() == (True, "second\n"), 60)
    until("the stock is full", ahead.is_full, 60)
    ahead.server.kill()
    ahead.server.start("--warm", "0", "--parked", "0", "--admin-listen", ahead.figures)
    until("nothing is left", lambda: not Objects.of(ahead.server.data).differences(0, set()), 30)
