"""Templates of two teams: whose name is whose, what a foreigner is told, limits of a team, and what is kept over a restart."""

import json
import threading
import urllib.error
import urllib.request

import pytest
from conftest import DATA, Server
from e2b.api.client_sync import get_api_client
from e2b.connection_config import ConnectionConfig
from e2b.template_sync.build_api import request_build
from test_admin import admin, call


@pytest.fixture(scope="module")
def server():
    made = Server()
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture(scope="module")
def teams(server):
    """Two teams: slug and key of each."""
    made = []
    for letter in "ab":
        slug = f"templates-{letter}-{server.port}"
        admin("team", "create", slug)
        made.append((slug, admin("key", "create", slug, "--name", "first")["key"]))
    return made


def ask(server: Server, key: str, name: str, status: int = 202, **more) -> dict:
    found, said = call(server, key, "POST", "/v3/templates", {"name": name} | more)
    assert found == status, said
    return said


def default_key() -> str:
    return json.loads((DATA / "credentials.json").read_text())["api_key"]


def test_cli_049_two_teams_have_the_same_name(server, teams):
    (slug, own), (_, other) = teams
    mine, theirs = ask(server, own, "same"), ask(server, other, "same")
    assert mine["templateID"] != theirs["templateID"]
    for key, made in ((own, mine), (other, theirs)):
        assert call(server, key, path="/templates/aliases/same")[1]["templateID"] == made["templateID"]
    assert call(server, own, path="/templates/aliases/unknown-name")[0] == 404
    assert call(server, other, path=f"/templates/aliases/{mine['templateID']}")[0] == 403
    assert call(server, other, path=f"/templates/aliases/{slug}%2Fsame")[0] == 403


def test_cp_047_a_private_template_is_nobody_elses_until_it_is_public(server, teams):
    # Of the default team, whose `base` can be had without a build; it is made private for as long as this takes.
    _, (_, other) = teams
    owner = default_key()
    template = call(server, owner, path="/templates/aliases/base")[1]["templateID"]
    create = {"templateID": "base", "timeout": 30}
    assert call(server, owner, "PATCH", f"/v2/templates/{template}", {"public": False})[0] == 200
    try:
        assert call(server, other, "POST", "/v2/sandboxes", create)[0] == 404
        assert call(server, owner, "POST", "/v2/sandboxes", create)[0] == 201
        assert template not in [it["templateID"] for it in call(server, other, path="/default-templates")[1]]
    finally:
        assert call(server, owner, "PATCH", f"/v2/templates/{template}", {"public": True})[0] == 200
    assert call(server, other, "POST", "/v2/sandboxes", create)[0] == 201
    for key in (owner, other):
        for made in call(server, key)[1]:
            assert call(server, key, "DELETE", f"/sandboxes/{made['sandboxID']}")[0] == 204


def test_cp_127_a_foreign_build_is_forbidden(server, teams):
    (_, own), (_, other) = teams
    made = ask(server, own, "foreign-build")
    path = f"/templates/{made['templateID']}/builds/{made['buildID']}"
    assert call(server, own, path=f"{path}/status")[1]["status"] == "waiting"
    for what in ("status", "logs"):
        assert call(server, other, path=f"{path}/{what}")[0] == 403
    assert call(server, other, "POST", f"/v2{path}", {"fromImage": "debian:12"})[0] == 403
    assert call(server, other, path=f"/templates/{made['templateID']}/files/{'a' * 64}")[0] == 403


def test_cp_136_visibility(server, teams):
    (slug, own), (_, other) = teams
    made = ask(server, own, "seen")
    path = f"/v2/templates/{made['templateID']}"
    assert call(server, own, "PATCH", path, {"public": True}) == (200, {"names": [f"{slug}/seen"]})
    assert call(server, other, path=f"/templates/aliases/{slug}%2Fseen")[1]["public"] is True
    assert call(server, own, "PATCH", path, {}) == (200, {"names": [f"{slug}/seen"]})
    assert call(server, other, path=f"/templates/aliases/{slug}%2Fseen")[1]["public"] is True
    assert call(server, own, "PATCH", "/v2/templates/unknown-name", {"public": True})[0] == 404
    assert call(server, other, "PATCH", path, {"public": False})[0] == 403
    assert call(server, own, "PATCH", path, {"public": False})[0] == 200
    assert call(server, other, path=f"/templates/aliases/{slug}%2Fseen")[0] == 403


def test_cp_137_deletion(server, teams):
    (_, own), (_, other) = teams
    made = ask(server, own, "deleted")
    assert call(server, other, "DELETE", "/templates/deleted")[0] == 404
    assert call(server, other, "DELETE", f"/templates/{made['templateID']}")[0] == 403
    assert call(server, own, "DELETE", "/templates/deleted") == (204, None)
    assert call(server, own, "DELETE", "/templates/deleted")[0] == 404
    assert call(server, own, path=f"/templates/{made['templateID']}")[0] == 404
    # The ID of a template is never a name.
    taken = ask(server, own, made["templateID"], 409)
    assert taken["message"] == f"Alias '{made['templateID']}' is already used"
    owner = default_key()
    status, said = call(server, owner, "DELETE", "/templates/base")
    assert status == 400 and "built on the host" in said["message"]


def test_cp_138_too_many_builds_at_once(server, teams):
    slug = f"templates-full-{server.port}"
    admin("team", "create", slug)
    key = admin("key", "create", slug, "--name", "first")["key"]
    for number in range(20):
        ask(server, key, f"n{number}")
    refused = ask(server, key, "one-more", 429)
    assert "maximum number of concurrent template builds (20)" in refused["message"]
    # A newer one of the same tag takes the place of the one that waits.
    ask(server, key, "n0")
    call(server, key, "DELETE", "/templates/n1")
    ask(server, key, "one-more")


def test_builds_and_tags_are_kept_over_a_restart(server, teams):
    (_, own), _ = teams
    made = ask(server, own, "kept", tags=["a", "b"])
    owner = default_key()
    assert call(server, owner, "POST", "/templates/tags", {"target": "base", "tags": ["kept"]})[0] == 201
    assert server.stop() == 0
    server.start()
    path = f"/templates/{made['templateID']}"
    assert call(server, own, path=f"{path}/builds/{made['buildID']}/status")[1]["status"] == "waiting"
    tags = [it["tag"] for it in call(server, owner, path="/templates/base/tags")[1]]
    assert tags == ["default", "kept"]
    assert call(server, owner, "DELETE", "/templates/tags", {"name": "base", "tags": ["kept"]})[0] == 204


def test_cli_050_a_build_too_many_is_asked_for_again_until_there_is_a_place(server):
    slug = f"templates-wait-{server.port}"
    admin("team", "create", slug)
    key = admin("key", "create", slug, "--name", "first")["key"]
    for number in range(20):
        ask(server, key, f"n{number}")
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v3/templates",
        method="POST",
        headers={"X-API-Key": key, "Content-Type": "application/json"},
        data=b'{"name":"more"}',
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 429 and int(refused.value.headers["Retry-After"]) > 0
    assert refused.value.headers["Should-Retry"] == "true"
    refused.value.close()
    # The official package asks again by itself, and there is a place by then.
    room = threading.Timer(1, call, (server, key, "DELETE", "/templates/n1"))
    room.start()
    try:
        client = get_api_client(ConnectionConfig(api_key=key, api_url=f"http://127.0.0.1:{server.port}"))
        made = request_build(client, "more", None, None, None, None)
        assert made.aliases == ["more"]
    finally:
        room.join()
