"""More requests into one sandbox than it may have: a typed refusal, for it alone, until there is room again."""

import json
import struct

import httpx
import pytest
from conftest import Server, until
from e2b import RateLimitException, Sandbox
from test_hostile_clients import Front, Http2


@pytest.mark.timeout(180)
def test_more_than_the_limit_of_a_sandbox():
    server = Server()
    try:
        server.start("--warm", "1", "--parked", "1", "--max-requests", "20")
        front = Front(server)
        with Sandbox.create("base", timeout=300) as sandbox, Sandbox.create("base", timeout=300) as other:
            idle = sandbox.commands.run("sleep 600", background=True, timeout=0)
            message = json.dumps({"process": {"pid": idle.pid}}).encode()
            body = struct.pack(">BI", 0, len(message)) + message
            http2 = Http2(front)
            # The SDK's own stream is one of the twenty.
            streams = [
                http2.ask(sandbox, "/process.Process/Connect", body, content_type="application/connect+json")
                for _ in range(19)
            ]
            http2.flush()
            http2.receive(lambda: len(http2.statuses) == len(streams))
            assert set(http2.statuses.values()) == {200}
            refused = httpx.get(
                f"http://127.0.0.1:{server.port}/health",
                headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"},
                trust_env=False,
            )
            assert refused.status_code == 429
            assert refused.json() == {
                "sandboxId": sandbox.sandbox_id,
                "message": "The sandbox has reached its limit of 20 connections at once",
                "connectionLimit": 20,
                "code": 429,
            }
            with pytest.raises(RateLimitException):
                sandbox.commands.run("echo no")
            assert other.commands.run("echo on").stdout == "on\n"
            http2.close()
            until("places come back", lambda: sandbox.is_running(), 20)
            assert sandbox.commands.run("echo on").stdout == "on\n"
    finally:
        server.end()
