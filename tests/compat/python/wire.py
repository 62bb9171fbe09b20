"""A plain client of the daemon inside a sandbox: the Connect protocol by hand, for what no SDK sends."""

import base64
import json
import os
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Iterator

import httpx

STREAM = "application/connect+json"


def encoded(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def envelope(message: Any) -> bytes:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">BI", 0, len(payload)) + payload


@dataclass
class Outcome:
    """All that a program said, and how it ended."""

    stdout: bytes = b""
    stderr: bytes = b""
    pty: bytes = b""
    end: dict | None = None
    keepalives: int = 0
    error: dict | None = None


class Stream:
    """A server stream under way. `end` is the last message's payload, once it has come."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.chunks = response.iter_raw()
        self.buffer = bytearray()
        self.end: dict | None = None

    def _take(self, length: int) -> bytes:
        while len(self.buffer) < length:
            self.buffer += next(self.chunks)
        taken = bytes(self.buffer[:length])
        del self.buffer[:length]
        return taken

    def __iter__(self) -> Iterator[dict]:
        while (message := self.next()) is not None:
            yield message

    def next(self) -> dict | None:
        if self.end is not None:
            return None
        flags, length = struct.unpack(">BI", self._take(5))
        payload = json.loads(self._take(length))
        if flags == 2:
            self.end = payload
            self.response.close()
            return None
        assert flags == 0, flags
        return payload

    def pid(self) -> int:
        first = self.next()
        assert first is not None, self.end
        return first["event"]["start"]["pid"]

    def outcome(self) -> Outcome:
        outcome, said = Outcome(), {"stdout": bytearray(), "stderr": bytearray(), "pty": bytearray()}
        for message in self:
            event = message["event"]
            for name, data in event.get("data", {}).items():
                said[name] += base64.b64decode(data)
            outcome.end = event.get("end", outcome.end)
            outcome.keepalives += "keepalive" in event
        outcome.stdout, outcome.stderr, outcome.pty = (bytes(each) for each in said.values())
        outcome.error = (self.end or {}).get("error")
        return outcome

    def code(self) -> str:
        """The error code at the end, `ok` when there is none."""
        for _ in self:
            pass
        return (self.end or {}).get("error", {}).get("code", "ok")

    def close(self) -> None:
        self.response.close()


@dataclass
class Wire:
    """Requests to one daemon; `headers` go with each of them."""

    base: str
    headers: dict[str, str]
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    @classmethod
    def to(cls, sandbox, port: int = 49983) -> "Wire":
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
        token = sandbox._envd_access_token
        return cls(os.environ["E2B_SANDBOX_URL"], headers | ({"X-Access-Token": token} if token else {}))

    def without_token(self) -> "Wire":
        return Wire(self.base, {k: v for k, v in self.headers.items() if k != "X-Access-Token"})

    def request(self, method: str, path: str, headers: dict[str, str] | None = None, **more) -> httpx.Response:
        return self.client.request(method, self.base + path, headers=self.headers | (headers or {}), **more)

    def call(self, method: str, message: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        """A unary call; `process.Process/List` style names."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.request("POST", f"/{method}", {"Content-Type": "application/json"} | (headers or {}), content=body)

    def ok(self, method: str, message: Any, headers: dict[str, str] | None = None) -> dict:
        answer = self.call(method, message, headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, method: str, message: Any, headers: dict[str, str] | None = None) -> str:
        answer = self.call(method, message, headers)
        assert answer.status_code != 200, answer.text
        return answer.json()["code"]

    def stream(self, method: str, message: Any, headers: dict[str, str] | None = None, content=None) -> Stream:
        request = self.client.build_request(
            "POST",
            f"{self.base}/{method}",
            headers=self.headers | {"Content-Type": STREAM} | (headers or {}),
            content=content if content is not None else envelope(message),
        )
        # A pool of its own: a stream that a test leaves unread is closed by the garbage collector, at any moment, and would then wait for
        # the lock of a shared pool that this very thread holds.
        response = httpx.Client(timeout=self.client.timeout).send(request, stream=True)
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == STREAM
        return Stream(response)

    def start(self, *command: str, headers: dict[str, str] | None = None, **more) -> Stream:
        """Starts a program; keywords `envs` and `cwd` belong to the program, others to the request."""
        process = {"cmd": command[0], "args": list(command[1:])}
        process |= {name: more.pop(name) for name in ("envs", "cwd") if name in more}
        return self.stream("process.Process/Start", {"process": process} | more, headers)

    def run(self, script: str, headers: dict[str, str] | None = None, **more) -> Stream:
        return self.start("/bin/sh", "-c", script, headers=headers, **({"stdin": False} | more))


def until(what: str, condition, within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.05)
