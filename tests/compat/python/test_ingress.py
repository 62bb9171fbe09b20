"""The way in: hosts, headers, traffic tokens, WebSockets, and the answers when there is no way."""

import base64
import json
import os
import socket
import threading
import time
import urllib.parse

import httpx
import pytest
from conftest import TEMPLATE, api, request, through_ingress
from e2b import CommandExitException, Sandbox, TimeoutException
from generation import OLD
from wire import Wire, until

BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
    "Accept": "text/html",
}
UNKNOWN = "iaaaaaaaaaaaaaaaaaaaa"
BASE = os.environ["E2B_SANDBOX_URL"]

# Echoes requests with their headers, WebSocket frames, and a stream of server-sent events.
SERVER = r"""
import base64, hashlib, http.server, json, socketserver, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("upgrade", "").lower() == "websocket":
            return self.websocket()
        if self.path == "/events":
            return self.events()
        text = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def events(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for n in range(3):
            self.wfile.write(b"data: %d\n\n" % n)
            self.wfile.flush()
            time.sleep(0.4)
        self.close_connection = True
    def websocket(self):
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8: break
            length = head[1] & 127
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([0x81, len(data)]) + data)
            self.wfile.flush()
        self.close_connection = True
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def serve(sandbox: Sandbox, port: int, **asking):
    sandbox.files.write("/tmp/server.py", SERVER)
    handle = sandbox.commands.run(f"python3 /tmp/server.py {port}", background=True, timeout=0)
    until("it listens", lambda: f":{port} " in sandbox.commands.run("ss -Hltn").stdout, 15)
    return handle


@pytest.fixture(scope="module")
def server(sandbox):
    return serve(sandbox, 8000)


def on_host(host: str, path: str = "/", **headers: str):
    return request("GET", BASE + path, {"Host": host} | headers)


def websocket(sandbox_id: str, port: int, by_host: bool) -> bytes:
    """One text frame there and back."""
    where = urllib.parse.urlsplit(BASE)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        if by_host:
            naming = f"Host: {port}-{sandbox_id}.sandboxes.test\r\n"
        else:
            naming = f"Host: localhost\r\nE2b-Sandbox-Id: {sandbox_id}\r\nE2b-Sandbox-Port: {port}\r\n"
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET /ws HTTP/1.1\r\n{naming}Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        reader = connection.makefile("rb")
        assert reader.readline().startswith(b"HTTP/1.1 101")
        while reader.readline().strip():
            pass
        mask = os.urandom(4)
        connection.sendall(bytes([0x81, 0x80 | 5]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(b"hello")))
        head = reader.read(2)
        return reader.read(head[1])


def test_envd_023_headers_name_a_sandbox_on_shared_hosts(sandbox, server):
    for host in ("localhost", "127.0.0.1", "sandbox.sandboxes.test"):
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
        assert json.loads(on_host(host, "/x", **headers).body)["path"] == "/x", host
        for name in headers:
            answer = on_host(host, **{name: headers[name]})
            assert answer.status == 400 and "missing header" in answer.text


def test_envd_024_what_follows_the_id_is_ignored(sandbox):
    assert on_host(f"49983-{sandbox.sandbox_id}-deadbeef.sandboxes.test", "/health").status == 204


def test_envd_030_a_server_is_reached_by_its_host(sandbox, server):
    assert sandbox.get_host(8000).startswith(f"8000-{sandbox.sandbox_id}.")
    listener = sandbox.commands.run("cd /etc && python3 -m http.server 8001 --bind 0.0.0.0", background=True, timeout=0)
    until("it answers", lambda: on_host(sandbox.get_host(8001), "/hostname").text.strip() == "e2b.local", 15)
    listener.kill()


@pytest.mark.parametrize("by_host", [True, False])
def test_envd_033_a_websocket_passes(sandbox, server, by_host):
    assert websocket(sandbox.sandbox_id, 8000, by_host) == b"hello"


@pytest.fixture(scope="module")
def private():
    made = Sandbox.create(TEMPLATE, timeout=300, network={"allow_public_traffic": False})
    serve(made, 8000)
    yield made
    made.kill()


def test_envd_034_private_traffic(private):
    def ask(**headers: str):
        return through_ingress(private.sandbox_id, 8000, headers=headers)

    assert ask().status == 403 and ask(**{"e2b-traffic-access-token": "wrong"}).status == 403
    assert ask(**{"e2b-traffic-access-token": private.traffic_access_token}).status == 200
    assert private.commands.run("echo unaffected").stdout == "unaffected\n"


def test_cp_107_private_traffic_says_what_is_wrong(private):
    missing = through_ingress(private.sandbox_id, 8000)
    assert missing.status == 403 and json.loads(missing.body)["message"].endswith("is missing")
    wrong = through_ingress(private.sandbox_id, 8000, headers={"e2b-traffic-access-token": "0" * 64})
    assert wrong.status == 403 and json.loads(wrong.body)["message"].endswith("is invalid")
    right = through_ingress(private.sandbox_id, 8000, headers={"e2b-traffic-access-token": private.traffic_access_token})
    assert right.status == 200
    assert "e2b-traffic-access-token" not in json.loads(right.body)["headers"], "no business of the program"
    assert through_ingress(private.sandbox_id, 49983, "/health").status == 204


def test_cp_031_private_traffic_has_a_token(private, sandbox):
    assert private.traffic_access_token and len(private.traffic_access_token) >= 32
    assert not sandbox.traffic_access_token
    assert Sandbox.connect(private.sandbox_id).traffic_access_token == private.traffic_access_token


def test_cp_102_requests_and_websockets_by_host(sandbox, server):
    answer = on_host(f"8000-{sandbox.sandbox_id}.sandboxes.test", "/a?b=c")
    body = json.loads(answer.body)
    assert (answer.status, body["path"]) == (200, "/a?b=c")
    assert body["headers"]["host"] == f"8000-{sandbox.sandbox_id}.sandboxes.test"
    assert websocket(sandbox.sandbox_id, 8000, True) == b"hello"


def test_cp_103_a_port_without_a_server(sandbox):
    answer = on_host(f"8099-{sandbox.sandbox_id}.sandboxes.test")
    assert answer.status == 502
    assert json.loads(answer.body) == {
        "sandboxId": sandbox.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 8099,
        "code": 502,
    }


def test_cp_104_an_unknown_sandbox(sandbox):
    host = f"8000-{UNKNOWN}.sandboxes.test"
    answer = on_host(host)
    assert (answer.status, json.loads(answer.body)["message"]) == (502, "The sandbox was not found")
    page = on_host(host, **BROWSER)
    assert page.status == 502 and page.text.startswith("<html")
    script = on_host(host, **BROWSER, **{"Sec-Fetch-Mode": "cors"})
    assert script.headers["content-type"] == "application/json"


def test_cp_105_headers_on_other_hosts_are_ignored(sandbox, server):
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    assert json.loads(on_host("localhost:3000", "/x", **headers).body)["path"] == "/x"
    assert "missing header" in on_host("localhost", **{"E2b-Sandbox-Port": "8000"}).text
    assert on_host("api.sandboxes.test", "/health", **headers).status == 200, "the API's own health, not the sandbox's"
    other = on_host(f"8000-{UNKNOWN}.sandboxes.test", **headers)
    assert json.loads(other.body)["sandboxId"] == UNKNOWN


def test_cp_106_hosts_that_name_nothing(sandbox):
    answer = on_host(f"8000-{sandbox.sandbox_id}")
    assert (answer.status, json.loads(answer.body)["message"]) == (400, "Invalid host")
    for wrong in (sandbox.sandbox_id.upper(), "i_b", ""):
        answer = on_host(f"8000-{wrong}.sandboxes.test")
        assert (answer.status, json.loads(answer.body)["message"]) == (400, "Invalid sandbox ID"), wrong


def raw_status(sandbox: Sandbox, method: str, path: str) -> int:
    """The path as it is, which no client library sends."""
    where = urllib.parse.urlsplit(BASE)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: 49983-{sandbox.sandbox_id}.sandboxes.test\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        return int(connection.makefile("rb").readline().split()[1])


def test_cp_108_the_hosts_own_routes_are_not_there(sandbox):
    for path in ("/init", "/freeze", "/upgrade", "//init", "/./init", "/a/../init", "/%69nit", "/init/"):
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert raw_status(sandbox, method, path) == 404, (method, path)
    answer = on_host(f"49983-{sandbox.sandbox_id}.sandboxes.test", "/init")
    assert "reserved" in json.loads(answer.body)["message"]
    assert raw_status(sandbox, "GET", "/health") == 204


def test_cp_113_after_a_kill(own):
    sandbox = own()
    serve(sandbox, 8000)
    assert through_ingress(sandbox.sandbox_id, 8000).status == 200
    assert sandbox.is_running()
    sandbox.kill()
    began = time.monotonic()
    assert through_ingress(sandbox.sandbox_id, 8000).status == 502
    assert not sandbox.is_running() and time.monotonic() - began < 1


def test_envd_029_running_or_killed(own):
    sandbox = own()
    assert sandbox.is_running()
    sandbox.kill()
    assert not sandbox.is_running()


def test_sdk_07_a_command_after_the_kill(own):
    sandbox = own()
    sandbox.kill()
    with pytest.raises(TimeoutException, match="The sandbox was not found") as raised:
        sandbox.commands.run("true")
    assert OLD or type(raised.value).__name__ == "SandboxNotRunningException"
    assert sandbox.is_running() is False


def test_ci_113_hosting(sandbox, server):
    by_host = {"Host": f"8000-{sandbox.sandbox_id}.sandboxes.test"}
    by_headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    for headers in (by_host, by_headers):
        assert httpx.get(BASE + "/x", headers=headers).json()["path"] == "/x"
        arrived, began = [], time.monotonic()
        with httpx.stream("GET", BASE + "/events", headers=headers) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            for line in answer.iter_lines():
                if line:
                    arrived.append((line, time.monotonic() - began))
        assert [line for line, _ in arrived] == ["data: 0", "data: 1", "data: 2"]
        assert arrived[0][1] < 0.4 and arrived[2][1] > 0.7, arrived
    assert websocket(sandbox.sandbox_id, 8000, True) == websocket(sandbox.sandbox_id, 8000, False) == b"hello"
    closed = httpx.get(BASE + "/", headers=by_headers | {"E2b-Sandbox-Port": "8098"})
    assert "port is not open" in closed.json()["message"]
