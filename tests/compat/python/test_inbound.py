"""What a create says of requests into the sandbox: the host that programs see, ports with TLS; and files by their signature alone."""

import json
import os
import time
import urllib.parse

import httpx
import pytest
from conftest import TEMPLATE, api, request, through_ingress
from e2b import InvalidArgumentException, RateLimitException, Sandbox, SandboxException
from generation import newer
from test_ingress import UNKNOWN, serve
from wire import until

BASE = os.environ["E2B_SANDBOX_URL"]

# HTTPS with a certificate that the sandbox signed itself.
TLS_SERVER = """
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        text = f"{self.connection.version()} {self.headers['host']}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *_): pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/cert.pem", "/tmp/key.pem")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"""


def test_cp_100_the_host_that_programs_see(own):
    sandbox = own(network={"mask_request_host": "app.local:${PORT}"})
    serve(sandbox, 8000)
    headers = json.loads(through_ingress(sandbox.sandbox_id, 8000).body)["headers"]
    assert headers["host"] == "app.local:8000"
    assert headers["x-forwarded-host"] == urllib.parse.urlsplit(BASE).netloc
    host = f"8000-{sandbox.sandbox_id}.sandboxes.test"
    headers = json.loads(request("GET", BASE + "/", {"Host": host}).body)["headers"]
    assert (headers["host"], headers["x-forwarded-host"]) == ("app.local:8000", host)
    # It is kept when the outbound half is replaced, and shown.
    sandbox.update_network({"deny_out": ["0.0.0.0/0"]})
    headers = json.loads(through_ingress(sandbox.sandbox_id, 8000).body)["headers"]
    assert headers["host"] == "app.local:8000"
    detail = json.loads(api("GET", f"/sandboxes/{sandbox.sandbox_id}").body)
    assert detail["network"]["maskRequestHost"] == "app.local:${PORT}"


def test_cp_100_what_is_no_host_is_refused(own):
    for mask, text in (("ex ample", "mask request host is not valid"), ("bücher.example", "is not ASCII")):
        with pytest.raises(SandboxException, match=text):
            own(network={"mask_request_host": mask})
    sandbox = own()
    late = api("PUT", f"/sandboxes/{sandbox.sandbox_id}/network", json.dumps({"maskRequestHost": "a"}).encode())
    assert late.status == 400 and "only when the sandbox is created" in late.text


@newer("https_ports")
def test_ports_that_speak_tls(own):
    sandbox = own(network={"https_ports": [8443, 8444]})
    sandbox.commands.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=inside -keyout /tmp/key.pem -out /tmp/cert.pem"
    )
    sandbox.files.write("/tmp/tls.py", TLS_SERVER)
    sandbox.commands.run("python3 /tmp/tls.py", background=True, timeout=0)
    until("it listens", lambda: through_ingress(sandbox.sandbox_id, 8443).status == 200, 15)
    host = f"8443-{sandbox.sandbox_id}.sandboxes.test"
    answer = request("GET", BASE + "/", {"Host": host})
    assert (answer.status, answer.text) == (200, f"TLSv1.3 {host}")
    # A program that speaks in plain on such a port, and a port that nobody listens on.
    serve(sandbox, 8444)
    answer = through_ingress(sandbox.sandbox_id, 8444)
    assert answer.status == 502 and "does not speak TLS" in answer.text
    for ports, text in (([0], "0 is no port"), ([80, 80], "named twice"), ([49983], "49983")):
        with pytest.raises(SandboxException, match=text):
            own(network={"https_ports": ports})


def test_signed_urls_work_without_any_header(sandbox):
    sandbox.files.write("/home/user/signed.txt", "who am I")
    url = sandbox.download_url("signed.txt", use_signature_expiration=60)
    assert urllib.parse.urlsplit(url).netloc == urllib.parse.urlsplit(BASE).netloc
    answer = request("GET", url)
    assert (answer.status, answer.text) == (200, "who am I")
    up = sandbox.upload_url("uploaded.txt", use_signature_expiration=60)
    sent = httpx.post(up, files={"file": ("uploaded.txt", b"from nobody in particular")}, trust_env=False)
    assert sent.status_code == 200, sent.text
    assert sandbox.files.read("uploaded.txt") == "from nobody in particular"


def test_signatures_that_nobody_made_lead_nowhere(sandbox, own):
    sandbox.files.write("/home/user/signed.txt", "mine")
    other = own()
    other.files.write("/home/user/signed.txt", "theirs")
    # Each signature leads to its own sandbox.
    for one, text in ((sandbox, "mine"), (other, "theirs")):
        assert request("GET", one.download_url("signed.txt")).text == text
    url = sandbox.download_url("signed.txt")
    for bad in (
        url.replace("signed.txt", "other.txt"),
        url.replace("v1_", "v1_A"),
        url + "&username=root",
        url + "&signature_expiration=4102444800",
        sandbox.upload_url("signed.txt"),
    ):
        answer = request("GET", bad)
        assert answer.status == 401, bad
        assert json.loads(answer.body) == {"code": 401, "message": "invalid signature"}
    expired = sandbox.download_url("signed.txt", use_signature_expiration=1)
    time.sleep(2.1)
    answer = request("GET", expired)
    assert answer.status == 401 and "signature is already expired" in answer.text
    # Of a dead sandbox nobody knows the token.
    gone = other.download_url("signed.txt")
    other.kill()
    assert request("GET", gone).status == 401
    # Without a signature it is no file of anybody.
    assert request("GET", BASE + "/files?path=signed.txt").status == 404


def test_guessing_is_rationed_and_nobody_else_waits(sandbox):
    guess = BASE + "/files?path=a&signature=v1_guess"
    with httpx.Client(trust_env=False) as client:
        statuses = [client.get(guess).status_code for _ in range(400)]
        assert set(statuses) == {401, 429}
        last = client.get(guess)
        while last.status_code != 429:
            last = client.get(guess)
    assert last.headers["retry-after"] == "1" and last.json()["code"] == 429
    # Requests that name their sandbox are not searches.
    assert sandbox.commands.run("echo on").stdout == "on\n"
    time.sleep(1.5)
    assert request("GET", guess).status == 401


def test_pages_of_other_origins_read_refusals():
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,e2b-sandbox-id,e2b-sandbox-port"
    answer = request("OPTIONS", BASE + "/process.Process/Start", asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    answer = through_ingress(UNKNOWN, 49983, "/health", headers={"Origin": "https://page.example"})
    assert answer.status == 502 and answer.headers["access-control-allow-origin"] == "*"
