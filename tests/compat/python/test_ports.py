"""Servers inside a sandbox, asked from outside; and the answers when there is none."""

import json
import os
import time
import urllib.request

import pytest
from conftest import request, through_ingress
from e2b import Sandbox

ECHO = """
import http.server, sys, socket
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self): self.answer()
    def do_POST(self): self.answer()
    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        text = f"{self.command} {self.path} {body.decode()} {self.headers.get('x-mark')}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def echo(sandbox):
    sandbox.files.write("/tmp/echo.py", ECHO)

    def serve(address: str, port: int):
        return sandbox.commands.run(f"python3 /tmp/echo.py {address} {port}", background=True, timeout=0)

    return serve


def answered(sandbox: Sandbox, port: int, **more):
    deadline = time.monotonic() + 15
    while (answer := through_ingress(sandbox.sandbox_id, port, **more)).status == 502:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer


@pytest.mark.parametrize("address, port", [("0.0.0.0", 9001), ("127.0.0.1", 9002), ("localhost", 9003), ("::1", 9004), ("::", 9005)])
def test_envd_031_a_server_on_any_address_is_reached(sandbox, echo, address, port):
    server = echo(address, port)
    assert answered(sandbox, port, path="/a?b=c").text == "GET /a?b=c  None"
    posted = through_ingress(
        sandbox.sandbox_id, port, "/p", method="POST", body=b"payload", headers={"X-Mark": "here"}
    )
    assert posted.text == "POST /p payload here"
    assert server.kill()


def test_envd_032_the_next_server_on_the_same_port(sandbox, echo):
    first = echo("127.0.0.1", 9010)
    answered(sandbox, 9010)
    first.kill()
    second = echo("127.0.0.1", 9010)
    assert answered(sandbox, 9010).text.startswith("GET /")
    second.kill()


def test_envd_026_a_closed_port_says_so(sandbox):
    answer = through_ingress(sandbox.sandbox_id, 9099)
    assert answer.status == 502
    body = json.loads(answer.body)
    assert "port is not open" in body["message"]
    assert (body["code"], body["port"], body["sandboxId"]) == (502, 9099, sandbox.sandbox_id)


def test_envd_025_an_unknown_sandbox_says_so():
    unknown = "iaaaaaaaaaaaaaaaaaaaa"
    answer = through_ingress(unknown, 8000)
    assert answer.status == 502
    body = json.loads(answer.body)
    assert body["message"] == "The sandbox was not found"
    assert (body["code"], body["sandboxId"]) == (502, unknown)


def test_a_browser_gets_a_page(sandbox):
    browser = {
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
        "Accept": "text/html",
    }
    answer = through_ingress("iaaaaaaaaaaaaaaaaaaaa", 8000, headers=browser)
    assert answer.status == 502 and answer.headers["content-type"].startswith("text/html")
    assert "<html" in answer.text


@pytest.mark.parametrize("path", ["/init", "//init", "/files/../init", "/%69nit", "/./init"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_envd_027_the_hosts_own_routes_are_not_there(sandbox, path, method):
    assert through_ingress(sandbox.sandbox_id, 49983, path, method=method).status == 404


def test_envd_117_health_needs_no_token(sandbox):
    answer = through_ingress(sandbox.sandbox_id, 49983, "/health")
    assert (answer.status, answer.body) == (204, b"")


def test_files_need_the_token(sandbox):
    assert through_ingress(sandbox.sandbox_id, 49983, "/files?path=/etc/hostname").status == 401


def test_one_header_alone_is_a_mistake(sandbox):
    answer = request("GET", os.environ["E2B_SANDBOX_URL"] + "/", {"E2b-Sandbox-Id": sandbox.sandbox_id})
    assert answer.status == 400 and "missing header" in answer.text


def test_hosts_name_a_port_and_a_sandbox(sandbox, echo):
    """`<port>-<id>.<any domain>` works without the headers; the name need not resolve for a proxy in front."""
    server = echo("127.0.0.1", 9020)
    answered(sandbox, 9020)
    host = {"Host": f"9020-{sandbox.sandbox_id}.sandboxes.test"}
    assert request("GET", os.environ["E2B_SANDBOX_URL"] + "/x", host).text.startswith("GET /x")
    server.kill()


def test_a_stream_arrives_as_it_is_sent(sandbox):
    """Chunks come one by one, not when the answer is complete."""
    sandbox.files.write(
        "/tmp/slow.py",
        "import http.server, time\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        for n in range(3):\n"
        "            self.wfile.write(b'tick\\n'); self.wfile.flush(); time.sleep(0.7)\n"
        "http.server.HTTPServer(('127.0.0.1', 9030), Handler).serve_forever()\n",
    )
    server = sandbox.commands.run("python3 /tmp/slow.py", background=True)
    deadline = time.monotonic() + 15
    while "LISTEN" not in sandbox.commands.run("ss -ltn 'sport = :9030'").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "9030"}
    started, arrived = time.monotonic(), []
    with urllib.request.urlopen(
        urllib.request.Request(os.environ["E2B_SANDBOX_URL"] + "/", headers=headers), timeout=20
    ) as answer:
        while line := answer.readline():
            arrived.append((line, time.monotonic() - started))
    assert [line for line, _ in arrived] == [b"tick\n"] * 3
    assert arrived[0][1] < 0.7 and arrived[2][1] > 1.2, arrived
    server.kill()


def test_get_host_names_the_port(sandbox):
    assert sandbox.get_host(3000).startswith(f"3000-{sandbox.sandbox_id}.")
