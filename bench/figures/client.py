"""The server as the bench drives it: plain HTTP over connections that are kept, one a thread and a server."""

import http.client
import json
import os
import struct
import threading
from urllib.parse import urlsplit

API, INGRESS = urlsplit(os.environ["E2B_API_URL"]), urlsplit(os.environ["E2B_SANDBOX_URL"])
KEY = {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}
local = threading.local()


def call(base, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
    """One request over this thread's kept-alive connection."""
    connections = local.__dict__.setdefault("connections", {})
    connection = connections.get(base.netloc)
    if connection is None:
        connection = connections[base.netloc] = http.client.HTTPConnection(base.hostname, base.port, timeout=60)
        connection.connect()
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def warm_connection() -> None:
    """So that what is measured next has its connection already."""
    call(API, "GET", "/health", None, {})


def create(template: str = "base", timeout: int = 600, **limits: int) -> dict:
    """With `memoryMB` or other limits, where the template's are not to do."""
    return ask("POST", "/v2/sandboxes", 201, {"templateID": template, "timeout": timeout, **limits})


def ask(method: str, path: str, expected: int, body: dict | None = None):
    """What the API answers."""
    status, answer = call(API, method, path, None if body is None else json.dumps(body).encode(), KEY)
    assert status == expected, (method, path, status, answer)
    return json.loads(answer) if answer else None


def kill(sandbox: dict) -> None:
    status, body = call(API, "DELETE", f"/sandboxes/{sandbox['sandboxID']}", None, KEY)
    assert status == 204, (status, body)


def to_port(sandbox: dict, port: int) -> dict[str, str]:
    """Headers that lead a request to a port of the sandbox."""
    return {"E2b-Sandbox-Id": sandbox["sandboxID"], "E2b-Sandbox-Port": str(port), "X-Access-Token": sandbox["envdAccessToken"]}


def execute(sandbox: dict, program: str = "/bin/true", *arguments: str) -> bytes:
    """Start over the Connect protocol, read to the end of the stream; the stream."""
    message = json.dumps({"process": {"cmd": program, "args": arguments}}).encode()
    headers = to_port(sandbox, 49983) | {"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
    body = struct.pack("!BI", 0, len(message)) + message
    status, answer = call(INGRESS, "POST", "/process.Process/Start", body, headers)
    assert status == 200 and b'"end"' in answer, (status, answer)
    return answer
