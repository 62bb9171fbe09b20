"""`soulbox admin` against a running server: teams and keys, and what each change does to the team's requests."""

import http.client
import json
import sqlite3

import pytest
from conftest import DATA, Server, run, until
from e2b import RateLimitException, Sandbox


@pytest.fixture(scope="module")
def server():
    made = Server()
    try:
        yield made.start()
    finally:
        made.end()


def admin(*arguments: str, code: int = 0):
    said = run("admin", *arguments, "--json", "--data-dir", str(DATA))
    assert said.returncode == code, said.stderr
    return json.loads(said.stdout) if code == 0 else said.stderr


def call(server: Server, key: str, method: str = "GET", path: str = "/v2/sandboxes", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        headers = {"X-API-Key": key, "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


def create(server: Server, key: str):
    return call(server, key, "POST", "/v2/sandboxes", {"templateID": "base", "timeout": 60})


@pytest.fixture
def team(server):
    """A team of the test's own with one key."""
    team.count = getattr(team, "count", 0) + 1
    slug = f"team-{team.count}-{server.port}"
    made = admin("team", "create", slug)
    key = admin("key", "create", slug, "--name", "first")
    assert made["slug"] == slug
    return slug, key["key"]


def test_a_new_team_works_at_once_and_sees_its_own_only(server, team):
    slug, key = team
    status, made = create(server, key)
    assert status == 201, made
    own = Sandbox.create(timeout=60)
    assert [it["sandboxID"] for it in call(server, key)[1]] == [made["sandboxID"]]
    assert call(server, key, path=f"/sandboxes/{own.sandbox_id}")[0] == 404
    assert call(server, key, "DELETE", f"/sandboxes/{made['sandboxID']}")[0] == 204
    own.kill()
    assert slug in [it["slug"] for it in admin("team", "list")]


def test_a_ban_and_a_block_take_effect_and_are_lifted(server, team):
    slug, key = team
    assert call(server, key)[0] == 200
    assert admin("team", "ban", slug)["banned"] is True
    until("the ban holds", lambda: call(server, key) == (403, {"code": 403, "message": "team is banned"}), 5)
    admin("team", "unban", slug)
    until("the ban is lifted", lambda: call(server, key)[0] == 200, 5)
    admin("team", "block", slug, "--reason", "unpaid")
    until("the block holds", lambda: create(server, key)[0] == 403, 5)
    assert create(server, key)[1]["message"] == "team is blocked: unpaid"
    assert call(server, key)[0] == 200, "it may look"
    admin("team", "unblock", slug)
    until("the block is lifted", lambda: create(server, key)[0] == 201, 5)


def test_a_limit_of_sandboxes(server, team):
    slug, key = team
    assert admin("team", "limit", slug, "--max-sandboxes", "1", "--max-sandbox-hours", "2")["max_sandboxes"] == 1

    def longest() -> bool:
        body = {"templateID": "base", "timeout": 7201}
        status, said = call(server, key, "POST", "/v2/sandboxes", body)
        return status == 400 and said["message"] == "Timeout cannot be greater than 2 hours"

    until("the limit holds", longest, 5)
    assert create(server, key)[0] == 201
    status, said = create(server, key)
    assert status == 429 and "maximum number of concurrent E2B sandboxes (1)" in said["message"]
    with pytest.raises(RateLimitException):
        Sandbox.create(timeout=60, api_key=key)
    assert admin("team", "limit", slug, "--max-sandboxes", "default")["max_sandboxes"] is None
    until("the limit is lifted", lambda: create(server, key)[0] == 201, 5)


def test_keys_are_shown_once_kept_as_hashes_and_revoked(server, team):
    slug, first = team
    made = admin("key", "create", slug, "--name", "second")
    key = made["key"]
    assert call(server, key)[0] == 200
    listed = {it["name"]: it for it in admin("key", "list", slug)}
    assert set(listed) == {"first", "second"}
    shown = listed["second"]
    assert "key" not in shown
    assert (shown["prefix"], shown["value_length"]) == ("e2b_", 40)
    assert key == f"e2b_{key[4:]}" and key[4:6] == shown["mask_prefix"] and key[-4:] == shown["mask_suffix"]
    # The plain list masks it too.
    text = run("admin", "key", "list", slug, "--data-dir", str(DATA)).stdout
    assert key not in text and key[-4:] in text
    until("its use is noted", lambda: [it for it in admin("key", "list", slug) if it["last_used_at"]], 40)
    with sqlite3.connect(f"file:{DATA}/control/control.db?mode=ro", uri=True) as file:
        everything = "\n".join(file.iterdump())
    assert key[4:] not in everything and first[4:] not in everything
    assert admin("key", "revoke", slug, shown["key_id"]) == {"revoked": shown["key_id"]}
    until("it is refused", lambda: call(server, key)[0] == 401, 5)
    assert call(server, first)[0] == 200, "the other one works on"
    assert "has no key" in admin("key", "revoke", slug, shown["key_id"], code=1)


def test_mistakes_are_named(server, team):
    slug, _ = team
    assert "already" in admin("team", "create", slug, code=1)
    for bad in ("Acme", "a/b", "a b", "", "x" * 64):
        assert "is no slug" in admin("team", "create", bad, code=2)
    assert "there is no team `nobody`" in admin("team", "ban", "nobody", code=1)
    assert "there is no team `nobody`" in admin("key", "create", "nobody", "--name", "x", code=1)
    assert "needs a name" in admin("key", "create", slug, "--name", " ", code=2)
    assert "from 1, or default" in admin("team", "limit", slug, "--max-sandboxes", "0", code=2)
    assert "from 1, or default" in admin("team", "limit", slug, "--max-sandboxes", "many", code=2)


def test_without_records_there_is_nothing_to_administer(tmp_path):
    refused = run("admin", "team", "list", "--data-dir", str(tmp_path))
    assert refused.returncode == 1 and "there is no database" in refused.stderr
