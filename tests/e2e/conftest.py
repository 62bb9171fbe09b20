"""Fixtures of the end-to-end suite: the real binary, started, killed and started again (tests/server.py)."""

import pytest
from server import BINARY, DATA, Server, free_port, run, until

__all__ = ["BINARY", "DATA", "Server", "free_port", "run", "until"]


@pytest.fixture
def server():
    """A running server; whatever a test does to it, nothing of it is left."""
    made = Server()
    try:
        yield made.start()
    finally:
        made.end()
