"""What the control plane does with several teams, at its limits and over restarts; one server for all, with a small quota."""

import base64
import hashlib
import http.client
import json
import os
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import DATA, Server, free_port, until
from e2b import RateLimitException, Sandbox, ServiceBusyException

LIMIT = 3


@pytest.fixture(scope="module")
def server():
    made = Server()
    try:
        yield made.start("--max-sandboxes", str(LIMIT))
    finally:
        made.end()


class Client:
    def __init__(self, server: Server, **headers: str) -> None:
        self.port, self.headers = server.port, headers

    def call(self, method: str, path: str, body=None, **headers: str) -> tuple[int, dict | list | None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self.headers | headers)
            answer = connection.getresponse()
            text = answer.read()
            said = json.loads(text) if text else None
        finally:
            connection.close()
        if answer.status >= 400:
            assert said["code"] == answer.status, said
        return answer.status, said

    def create(self, **fields) -> str:
        status, said = self.call("POST", "/sandboxes", {"templateID": "base", "timeout": 120} | fields)
        assert status == 201, said
        return said["sandboxID"]

    def kill_all(self) -> None:
        for item in self.call("GET", "/sandboxes")[1]:
            assert self.call("DELETE", f"/sandboxes/{item['sandboxID']}")[0] in (204, 404)


def credentials() -> dict:
    return json.loads((DATA / "credentials.json").read_text())


@pytest.fixture
def one(server):
    """The default team; it has no sandbox before a test and none after it."""
    made = Client(server, **{"X-API-Key": credentials()["api_key"]})
    made.kill_all()
    yield made
    made.kill_all()


class Team:
    """Another team, put into the database: routes that make one come with a later issue."""

    def __init__(self, server: Server) -> None:
        self.id, secret = str(uuid.uuid4()), uuid.uuid4().hex + "00112233"
        self.client = Client(server, **{"X-API-Key": f"e2b_{secret}"})
        self.admin = Client(server, **{"X-Admin-Token": credentials()["admin_token"], "X-Team-ID": self.id})
        hashed = base64.b64encode(hashlib.sha256(bytes.fromhex(secret)).digest()).decode().rstrip("=")
        self.execute("INSERT INTO teams (team_id, name, slug, created_at) VALUES (?, 'other', ?, 0)", self.id, self.id)
        self.execute(
            "INSERT INTO api_keys (key_id, team_id, name, hash, prefix, value_length, mask_prefix, mask_suffix, created_at) "
            "VALUES (?, ?, 'k', ?, 'e2b_', 40, ?, ?, 0)",
            str(uuid.uuid4()), self.id, f"$sha256${hashed}", secret[:2], secret[-4:],
        )

    def execute(self, statement: str, *values) -> None:
        with sqlite3.connect(DATA / "control" / "control.db", timeout=10) as database:
            database.execute(statement, values)
        database.close()

    def mark(self, what: str, reason: str | None = None) -> None:
        self.execute(f"UPDATE teams SET {what} = 1, blocked_reason = ? WHERE team_id = ?", reason, self.id)


@pytest.fixture
def other(server):
    made = Team(server)
    yield made
    made.execute("UPDATE teams SET banned = 0, blocked = 0 WHERE team_id = ?", made.id)
    made.admin.kill_all()


def administrator(server) -> Client:
    return Client(server, **{"X-Admin-Token": credentials()["admin_token"]})


def test_cp_009_a_revoked_key_is_refused_at_once(server, other):
    status, made = other.admin.call("POST", "/api-keys", {"name": "for a while"})
    assert status == 201 and len(made["key"]) == 44
    client = Client(server, **{"X-API-Key": made["key"]})
    assert client.call("GET", "/v2/sandboxes")[0] == 200
    assert other.admin.call("DELETE", f"/api-keys/{made['id']}")[0] == 204
    status, said = client.call("GET", "/v2/sandboxes")
    assert status == 401 and "Cannot get the team for the given API key" in said["message"]
    assert other.client.call("GET", "/v2/sandboxes")[0] == 200, "the team's other key works on"


def test_cp_010_the_last_use_of_a_key(server, other):
    made = other.admin.call("POST", "/api-keys", {"name": "fresh"})[1]
    used = lambda: next(key for key in other.admin.call("GET", "/api-keys")[1] if key["id"] == made["id"]).get("lastUsed")
    assert used() is None
    client = Client(server, **{"X-API-Key": made["key"]})
    assert client.call("GET", "/v2/sandboxes")[0] == 200
    first = used()
    assert first is not None
    time.sleep(1.1)
    assert client.call("GET", "/v2/sandboxes")[0] == 200
    assert used() == first


def test_cp_149_the_administrator_makes_and_revokes_keys(server, other):
    admin = administrator(server)
    keys = f"/admin/teams/{other.id}/api-keys"
    status, made = admin.call("POST", keys, {"name": "by the operator"})
    assert status == 201
    client = Client(server, **{"X-API-Key": made["key"]})
    client.create()
    client.kill_all()
    assert admin.call("DELETE", f"{keys}/{made['id']}")[0] == 204
    assert client.call("GET", "/v2/sandboxes")[0] == 401
    assert admin.call("DELETE", f"{keys}/{made['id']}")[0] == 404
    nobody = f"/admin/teams/{uuid.uuid4()}/api-keys"
    assert admin.call("POST", nobody, {"name": "x"})[0] == 404
    assert admin.call("POST", keys, {})[0] == 400
    assert other.client.call("POST", keys, {"name": "x"})[0] == 401
    other.mark("banned")
    status, said = admin.call("POST", keys, {"name": "x"})
    assert status == 403 and said["message"] == "team is banned"


def test_cp_002_health_tells_of_the_end(server, one):
    health = f"http://127.0.0.1:{server.port}/health"

    def status() -> int:
        try:
            with urllib.request.urlopen(health, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            assert error.read() == b"Service is unavailable"
            return error.code

    sandbox = Sandbox.connect(one.create())
    front = server.front()
    finished = []
    # A request that is under way keeps the front for as long as it lasts.
    thread = threading.Thread(target=lambda: finished.append(sandbox.commands.run("sleep 2; echo end").stdout))
    thread.start()
    until("the command runs", lambda: any(it.cmd == "/bin/bash" for it in sandbox.commands.list()))
    assert status() == 200
    os.kill(front, signal.SIGTERM)
    until("it says so", lambda: server.front() == front and status() == 503, 2)
    thread.join(20)
    assert finished == ["end\n"]
    until("a new front", lambda: server.front() not in (None, front) and server.answers(), 20)
    assert status() == 200


def test_cp_014_nodes_are_the_administrators(server, one):
    assert Client(server).call("GET", "/nodes")[0] == 401
    assert Client(server, **{"X-Admin-Token": "wrong"}).call("GET", "/nodes")[0] == 401
    assert one.call("GET", "/nodes")[0] == 401
    one.create()
    status, [node] = administrator(server).call("GET", "/nodes")
    assert status == 200 and node["status"] == "ready" and node["sandboxCount"] == 1
    assert node["createSuccesses"] >= 1 and node["sandboxStartingCount"] == 0
    assert node["metrics"]["cpuCount"] >= 1 and node["machineInfo"]["cpuArchitecture"] == os.uname().machine
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert abs(node["metrics"]["memoryTotalBytes"] - memory) < memory / 10
    assert any(str(DATA).startswith(disk["mountPoint"]) and disk["totalBytes"] > 0 for disk in node["metrics"]["disks"])
    detail = administrator(server).call("GET", f"/nodes/{node['id']}")[1]
    assert detail["serviceInstanceID"] == node["serviceInstanceID"] and "sandboxStartingCount" not in detail


@contextmanager
def drained(server):
    """While the only node takes nothing new."""
    admin = administrator(server)
    node = admin.call("GET", "/nodes")[1][0]["id"]
    assert admin.call("POST", f"/nodes/{node}", {"status": "draining"})[0] == 204
    try:
        yield
    finally:
        assert admin.call("POST", f"/nodes/{node}", {"status": "ready"})[0] == 204


def test_cp_147_a_draining_node_takes_nothing_new(server, one):
    admin = administrator(server)
    kept = one.create()
    assert admin.call("POST", "/nodes/nobody", {"status": "draining"})[0] == 404
    for body in ({"status": "connecting"}, {"status": "x"}, {}):
        assert admin.call("POST", f"/nodes/{os.uname().nodename}", body)[0] == 400
    with drained(server):
        status, said = one.call("POST", "/sandboxes", {"templateID": "base"})
        assert (status, said["error_code"]) == (503, "sandbox_no_compatible_node")
        assert Sandbox.connect(kept).commands.run("echo still").stdout == "still\n"
        # The host remembers it, not the front.
        front = server.front()
        os.kill(front, signal.SIGKILL)
        until("a new front", lambda: server.front() not in (None, front) and server.answers())
        assert one.call("POST", "/sandboxes", {"templateID": "base"})[0] == 503
        assert [item["sandboxID"] for item in one.call("GET", "/v2/sandboxes")[1]] == [kept]
    one.create()


@contextmanager
def counted(server, without: str | None = None, after: float = 0):
    """A relay to the API that counts requests, may drop a header of the answers, and may refuse connections for some seconds."""
    seen = []

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            seen.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("POST", self.path, body, dict(self.headers))
            answer = connection.getresponse()
            text = answer.read()
            connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (without, "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    relay = ThreadingHTTPServer(("127.0.0.1", free_port()), Relay, bind_and_activate=False)
    relay.server_bind()

    def serve() -> None:
        time.sleep(after)
        # Bound and not listening, its port refuses.
        relay.server_activate()
        relay.serve_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{relay.server_port}", seen
    finally:
        relay.shutdown()
        relay.server_close()


def test_sdk_04_a_refusal_for_good_costs_one_request(server, one):
    with drained(server):
        for without, requests in ((None, 1), ("should-retry", 4)):
            with counted(server, without) as (url, seen):
                with pytest.raises(ServiceBusyException):
                    Sandbox.create("base", api_url=url)
            assert len(seen) == requests, f"{seen} without {without}"


def test_ci_107_a_refused_connection_is_tried_again(server, one):
    with counted(server, after=0.3) as (url, seen):
        sandbox = Sandbox.create("base", timeout=60, api_url=url)
        assert [item["sandboxID"] for item in one.call("GET", "/v2/sandboxes")[1]] == [sandbox.sandbox_id]
    assert seen == ["/v2/sandboxes"], "what was delivered is not sent again"


def test_ci_104_drain_and_back(server, one):
    admin, wrong = administrator(server), Client(server, **{"X-Admin-Token": "wrong"})
    node = admin.call("GET", "/nodes")[1][0]["id"]
    assert wrong.call("POST", f"/nodes/{node}", {"status": "draining"})[0] == 401
    with drained(server):
        assert admin.call("GET", f"/nodes/{node}")[1]["status"] == "draining"
        assert one.call("POST", "/sandboxes", {"templateID": "base"})[0] == 503
    assert admin.call("GET", f"/nodes/{node}")[1]["status"] == "ready"
    one.create()


def test_cp_011_a_banned_team_does_nothing(other):
    other.mark("banned")
    for method, path in (("GET", "/v2/sandboxes"), ("POST", "/sandboxes"), ("GET", "/templates"), ("DELETE", "/sandboxes/iabc")):
        status, said = other.client.call(method, path)
        assert (status, said["message"]) == (403, "team is banned"), path


def test_cp_012_a_blocked_team_is_told_why(other):
    other.mark("blocked", "unpaid since May")
    status, said = other.client.call("POST", "/sandboxes", {"templateID": "base"})
    assert status == 403 and said["message"] == "team is blocked: unpaid since May"


def test_cp_013_a_blocked_team_looks_and_cleans_up(other):
    # By the administrator, so that the server has not seen the key yet: it remembers one for a while.
    sandbox_id = other.admin.create()
    other.mark("blocked", "unpaid")
    for path in ("/sandboxes", "/v2/sandboxes", "/v2/templates", f"/sandboxes/{sandbox_id}"):
        assert other.client.call("GET", path)[0] == 200, path
    assert other.client.call("POST", f"/sandboxes/{sandbox_id}/timeout", {"timeout": 60})[0] == 403
    assert other.client.call("DELETE", f"/sandboxes/{sandbox_id}")[0] == 204


def test_cp_015_the_administrator_acts_as_a_team(server, one, other):
    sandbox_id, foreign = other.client.create(), one.create()
    status, items = other.admin.call("GET", "/v2/sandboxes")
    assert status == 200 and [item["sandboxID"] for item in items] == [sandbox_id]
    assert other.admin.call("GET", f"/sandboxes/{foreign}")[0] == 404
    token = credentials()["admin_token"]
    acting = lambda team, token=token: Client(server, **{"X-Admin-Token": token, "X-Team-ID": team})
    assert acting("not-a-uuid").call("GET", "/v2/sandboxes")[0] == 400
    assert acting(str(uuid.uuid4())).call("GET", "/v2/sandboxes")[0] == 404
    assert acting(other.id, "wrong").call("GET", "/v2/sandboxes")[0] == 401


def test_cp_038_a_foreign_sandbox_is_not_there(one, other):
    sandbox_id = one.create()
    assert one.call("GET", f"/sandboxes/{sandbox_id}")[0] == 200
    status, said = other.client.call("GET", f"/sandboxes/{sandbox_id}")
    assert status == 404 and "doesn't exist or you don't have access to it" in said["message"]
    assert other.client.call("GET", "/v2/sandboxes")[1] == []
    assert other.client.call("POST", f"/sandboxes/{sandbox_id}/timeout", {"timeout": 1})[0] == 404
    assert other.client.call("POST", f"/v2/sandboxes/{sandbox_id}/connect", {})[0] == 404


def test_cp_042_a_foreign_sandbox_is_not_killed(one, other):
    sandbox_id = one.create()
    assert other.client.call("DELETE", f"/sandboxes/{sandbox_id}")[0] == 404
    assert one.call("GET", f"/sandboxes/{sandbox_id}")[1]["state"] == "running"


def test_cp_044_one_too_many(one, other):
    for _ in range(LIMIT):
        one.create()
    status, said = one.call("POST", "/sandboxes", {"templateID": "base"})
    assert status == 429
    assert f"maximum number of concurrent E2B sandboxes ({LIMIT})" in said["message"]
    assert "/docs/billing" in said["message"]
    # Each team has its own number.
    other.client.create()


def test_cp_045_a_kill_makes_room(one):
    made = [one.create() for _ in range(LIMIT)]
    assert one.call("POST", "/sandboxes", {"templateID": "base"})[0] == 429
    assert one.call("DELETE", f"/sandboxes/{made[0]}")[0] == 204
    one.create()


def test_cp_082_no_more_forks_than_a_team_may_have(one):
    fork = f"/sandboxes/{one.create()}/fork"
    for count in (LIMIT, LIMIT + 1):
        status, said = one.call("POST", fork, {"count": count})
        assert status == 400 and said["message"] == f"Count must be lower than the maximum number of concurrent sandboxes ({LIMIT})"
    status, made = one.call("POST", fork, {"count": LIMIT - 1})
    assert status == 201 and all("sandbox" in each for each in made), made
    assert len(one.call("GET", "/sandboxes")[1]) == LIMIT


def test_cp_046_a_burst_never_exceeds_the_limit(one):
    with ThreadPoolExecutor(2 * LIMIT) as pool:
        answers = list(pool.map(lambda _: one.call("POST", "/sandboxes", {"templateID": "base", "timeout": 60}), range(2 * LIMIT)))
    statuses = sorted(status for status, _ in answers)
    assert statuses == [201] * LIMIT + [429] * LIMIT
    assert len(one.call("GET", "/v2/sandboxes?state=running")[1]) == LIMIT


def test_sdk_06_a_full_quota_costs_one_request(one):
    for _ in range(LIMIT):
        one.create()
    began = time.monotonic()
    with pytest.raises(RateLimitException):
        Sandbox.create("base")
    assert time.monotonic() - began < 1, "the package waits before it repeats"


def default_team() -> str:
    with sqlite3.connect(DATA / "control" / "control.db", timeout=10) as database:
        (team_id,) = database.execute("SELECT team_id FROM teams WHERE slug = 'default'").fetchone()
    database.close()
    return team_id


def test_cp_142_sandboxes_of_a_team_over_time(one, other):
    path = f"/teams/{default_team()}/metrics"
    # Sandboxes of earlier tests are in older samples.
    new = f"{path}?start={int(time.time())}"
    one.create()
    until("a sample has its start", lambda: any(p["sandboxStartRate"] > 0 for p in one.call("GET", new)[1]), 30)
    assert any(point["concurrentSandboxes"] == 1 for point in one.call("GET", new)[1])
    status, said = other.client.call("GET", path)
    assert status == 403 and "not authorized to access this team's" in said["message"]
    assert other.client.call("GET", f"/teams/{other.id}/metrics")[1] == []
    now = int(time.time())
    for times in (f"start={now + 60}", f"start={now}&end={now - 60}", "start=x"):
        assert one.call("GET", f"{path}?{times}")[0] == 400, times


def test_cp_143_the_most_of_a_team(one):
    path = f"/teams/{default_team()}/metrics/max?start={int(time.time())}&metric="
    one.create()
    until("a sample has its start", lambda: one.call("GET", path + "sandbox_start_rate")[1]["value"] > 0, 30)
    assert one.call("GET", path + "concurrent_sandboxes")[1]["value"] >= 1
    assert one.call("GET", path + "x")[0] == 400


def test_cp_074_another_team_resumes_nothing(one, other):
    running, paused = one.create(), one.create()
    assert one.call("POST", f"/sandboxes/{paused}/pause", {})[0] == 204
    snapshot = one.call("POST", f"/sandboxes/{running}/snapshots", {})[1]["snapshotID"]
    for sandbox_id in (running, paused):
        for call, body in [
            ("resume", {"timeout": 60}),
            ("connect", {"timeout": 60}),
            ("pause", {}),
            ("snapshots", {}),
            ("fork", {}),
            ("rollback", {"snapshotID": snapshot}),
        ]:
            assert other.client.call("POST", f"/sandboxes/{sandbox_id}/{call}", body)[0] == 404, (sandbox_id, call)
        assert other.client.call("POST", f"/v2/sandboxes/{sandbox_id}/connect", {})[0] == 404
    states = {it["sandboxID"]: it["state"] for it in one.call("GET", "/v2/sandboxes")[1]}
    assert states == {running: "running", paused: "paused"}
    own = other.client.create()
    # A snapshot of another team is none.
    assert other.client.call("POST", f"/sandboxes/{own}/rollback", {"snapshotID": snapshot})[0] == 404
    assert other.client.call("DELETE", f"/sandboxes/{own}")[0] == 204
    assert one.call("DELETE", f"/sandboxes/{paused}")[0] == 204


def test_cp_148_the_administrator_kills_all_of_a_team(server, one, other):
    kept = one.create()
    for _ in range(2):
        other.client.create()
    admin = Client(server, **{"X-Admin-Token": credentials()["admin_token"]})
    counts = admin.call("GET", "/admin/sandboxes/running-counts")[1]
    assert counts[other.id] == 2 and counts[default_team()] == 1
    kill = f"/admin/teams/{other.id}/sandboxes/kill"
    assert other.client.call("POST", kill)[0] == 401
    assert Client(server, **{"X-Admin-Token": "wrong"}).call("POST", kill)[0] == 401
    assert admin.call("POST", kill) == (200, {"killedCount": 2, "failedCount": 0})
    assert other.client.call("GET", "/v2/sandboxes")[1] == []
    assert [item["sandboxID"] for item in one.call("GET", "/v2/sandboxes")[1]] == [kept]
    assert admin.call("GET", "/admin/sandboxes/running-counts")[1] == {default_team(): 1}
    assert admin.call("POST", kill) == (200, {"killedCount": 0, "failedCount": 0})
    assert admin.call("POST", f"/admin/teams/{uuid.uuid4()}/sandboxes/kill")[0] == 404
    assert admin.call("POST", "/admin/teams/x/sandboxes/kill")[0] == 400


def test_cp_158_the_agent_starts_anew(server, one):
    kept, mortal = one.create(), one.create(timeout=2)
    server.kill()
    time.sleep(2)
    server.start("--max-sandboxes", str(LIMIT))
    until("only what runs is listed", lambda: [i["sandboxID"] for i in one.call("GET", "/v2/sandboxes")[1]] == [kept])
    assert one.call("GET", f"/sandboxes/{mortal}")[0] == 404
    # What is gone takes no place.
    for _ in range(LIMIT - 1):
        one.create()
    assert one.call("POST", "/sandboxes", {"templateID": "base"})[0] == 429


def test_sdk_03_an_idempotency_key_outlives_all_processes(server, one):
    body, key = {"templateID": "base", "timeout": 120}, {"Idempotency-Key": f"restart-{uuid.uuid4()}"}
    status, first = one.call("POST", "/v2/sandboxes", body, **key)
    assert status == 201, first
    server.kill()
    server.start("--max-sandboxes", str(LIMIT))
    assert one.call("POST", "/v2/sandboxes", body, **key) == (201, first)
    status, refused = one.call("POST", "/v2/sandboxes", body | {"timeout": 121}, **key)
    assert (status, refused["error_code"]) == (422, "idempotency_request_mismatch")
    assert [item["sandboxID"] for item in one.call("GET", "/v2/sandboxes")[1]] == [first["sandboxID"]]


def test_cp_159_the_api_starts_anew(server, one):
    made = [one.create(timeout=100 + number, metadata={"n": str(number)}) for number in range(2)]
    before = one.call("GET", "/v2/sandboxes")[1]
    front = server.front()
    os.kill(front, signal.SIGKILL)
    until("a new front", lambda: server.front() not in (None, front) and server.answers())
    assert one.call("GET", "/v2/sandboxes")[1] == before
    assert [item["sandboxID"] for item in before] == made[::-1]
