"""Templates over the API: requests for builds, names, tags, files, reading. What performs a build is in other files.

The tags are of `base`, which the team of the suite owns; each test takes away what it gave.
"""

import gzip
import io
import json
import os
import tarfile
import uuid
from datetime import datetime
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
from conftest import TEMPLATE, Answer, api, request
from e2b import Sandbox, SandboxException, Template
from generation import newer

HASH = "0123456789abcdef" * 4


def asked(name: str, status: int = 202, **more):
    answer = api("POST", "/v3/templates", json.dumps({"name": name} | more).encode())
    assert answer.status == status, answer.text
    return json.loads(answer.body)


def refused(name: str | None, message: str, **more) -> None:
    body = ({} if name is None else {"name": name}) | more
    answer = api("POST", "/v3/templates", json.dumps(body).encode())
    assert answer.status == 400 and message in answer.text, answer.text


def read(path: str, status: int = 200, **headers):
    answer = api("GET", path, **headers)
    assert answer.status == status, (path, answer.text)
    return json.loads(answer.body)


def tag(method: str, **body) -> Answer:
    return api(method, "/templates/tags", json.dumps(body).encode())


@pytest.fixture
def named():
    """Names of templates of this test alone, which are deleted after it."""
    names = []

    def make(prefix: str = "t") -> str:
        names.append(f"{prefix}-{uuid.uuid4().hex[:12]}")
        return names[-1]

    yield make
    for name in names:
        api("DELETE", f"/templates/{name}")


@pytest.fixture
def tags():
    """Tags of `base` of this test alone, which are taken away after it."""
    made = []

    def make(prefix: str = "v") -> str:
        made.append(f"{prefix}-{uuid.uuid4().hex[:12]}")
        return made[-1]

    yield make
    if made:
        Template.remove_tags(TEMPLATE, made)


def base() -> dict:
    template = read(f"/templates/aliases/{TEMPLATE}")["templateID"]
    return read(f"/templates/{template}")


def test_cp_114_a_request_with_nothing_but_a_name(named):
    name = named()
    made = asked(name)
    assert set(made) == {"templateID", "buildID", "public", "names", "tags", "aliases"}
    assert (made["tags"], made["aliases"], made["public"]) == (["default"], [name], False)
    assert [it.split("/")[1] for it in made["names"]] == [name] and uuid.UUID(made["buildID"])
    shown = read(f"/templates/{made['templateID']}")
    assert (shown["cpuCount"], shown["memoryMB"], shown["buildStatus"]) == (2, 1024, "waiting")


def test_cli_046_the_request_of_the_newest_clients(named):
    made = asked(named(), unknown={"a": 1})
    assert made["tags"] == ["default"] and len(made["templateID"]) == 20


def test_cp_115_names(named):
    refused(None, "Name is required")
    refused("", "Name is required")
    refused("with space", "a-z, 0-9")
    refused("other/x", "namespace 'other' must match your team")
    assert asked(named() + ":v2")["tags"] == ["v2"]


def test_cp_116_tags_of_a_request(named):
    refused("x", "tag cannot be a UUID", tags=[str(uuid.uuid4())])
    assert asked(named(), tags=["V1", "v1", "Latest"])["tags"] == ["v1", "latest"]


def test_cli_047_a_tag_in_the_name_is_one_of_the_tags(named):
    name = named()
    first = asked(name)
    second = asked(f"{name}:v1", tags=["v1", "latest"])
    assert second["tags"] == ["v1", "latest"] and second["templateID"] == first["templateID"]
    assert second["buildID"] != first["buildID"]


def test_cli_048_bad_names_and_tags():
    refused(None, "Name is required")
    refused("", "Name is required")
    refused("A B", "a-z, 0-9")
    refused("other-team/a", "namespace")
    refused("a", "tag cannot be a UUID", tags=[str(uuid.uuid4())])
    refused("a", "Invalid tag", tags=["x/y"])


def test_cp_117_resources(named):
    refused("x", "validation error", cpuCount=0)
    refused("x", "must be 1 or an even number", cpuCount=3)
    refused("x", "CPU count can't be higher than", cpuCount=64)
    refused("x", "validation error", memoryMB=64)
    refused("x", "must be divisible by 2", memoryMB=1025)
    refused("x", "Memory can't be higher than", memoryMB=1 << 20)
    made = asked(named(), cpuCount=1, memoryMB=128)
    shown = read(f"/templates/{made['templateID']}")
    assert (shown["cpuCount"], shown["memoryMB"]) == (1, 128)


def test_cli_059_unknown_keys_are_passed_over(named):
    made = asked(named(), nonsense=[1], alsoThis=None)
    body = json.dumps({"public": False, "nonsense": 1}).encode()
    assert api("PATCH", f"/v2/templates/{made['templateID']}", body).status == 200
    body = json.dumps({"name": made["aliases"][0], "tags": ["x"], "nonsense": 1}).encode()
    assert api("DELETE", "/templates/tags", body).status == 204


def archive(packed: bool) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo("ü" * 120)
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    return gzip.compress(made.getvalue()) if packed else made.getvalue()


def link(template: str, files_hash: str) -> dict:
    return read(f"/templates/{template}/files/{files_hash}", 201)


def test_cp_118_files_are_there_after_their_upload(named):
    template = asked(named())["templateID"]
    files_hash = uuid.uuid4().hex * 2
    first = link(template, files_hash)
    assert first["present"] is False
    answer = request("PUT", first["url"], {}, archive(packed=True))
    assert answer.status == 201, answer.text
    assert link(template, files_hash)["present"] is True
    for bad in ("x", "A" * 64, "a" * 63):
        answer = api("GET", f"/templates/{template}/files/{bad}")
        assert answer.status == 400 and "Invalid files hash" in answer.text
    assert api("GET", f"/templates/{'z' * 20}/files/{files_hash}").status == 404


def test_cli_061_a_link_is_given_when_the_files_are_there_too(named):
    template = asked(named())["templateID"]
    files_hash = uuid.uuid4().hex * 2
    assert request("PUT", link(template, files_hash)["url"], {}, archive(packed=False)).status == 201
    again = link(template, files_hash)
    assert again["present"] is True
    # Forced: the same files once more.
    assert request("PUT", again["url"], {}, archive(packed=True)).status == 201


def test_cli_062_the_link_is_the_permission(named):
    template = asked(named())["templateID"]
    url = link(template, HASH)["url"]
    parts = urlsplit(url)

    def changed(**change) -> str:
        return urlunsplit(parts._replace(**change))

    sent = archive(packed=True)
    # Nothing is kept of what is refused: this file is in no team's folder before the last line.
    assert request("PUT", changed(path=parts.path.replace(HASH, "f" * 64)), {}, sent).status == 403
    assert request("PUT", url[:-1] + ("0" if url[-1] != "0" else "1"), {}, sent).status == 403
    query = dict(it.split("=") for it in parts.query.split("&"))
    assert request("PUT", changed(query=f"expires=1000&token={query['token']}"), {}, sent).status == 403
    later = int(query["expires"]) + 1
    assert request("PUT", changed(query=f"expires={later}&token={query['token']}"), {}, sent).status == 403
    assert request("PUT", changed(query=f"expires={query['expires']}"), {}, sent).status == 400
    assert request("GET", url).status == 405
    assert request("PUT", url, {}, b"neither tar nor gzip").status == 400
    assert request("PUT", url, {}, sent).status == 201


def test_cp_127_status_of_builds_that_are_not(named):
    template = asked(named())["templateID"]
    assert "Invalid build ID" in read(f"/templates/{template}/builds/x/status", 400)["message"]
    unknown = str(uuid.uuid4())
    said = read(f"/templates/{template}/builds/{unknown}/status", 400)
    assert said["message"] == f"Build '{unknown}' not found"


def test_cli_053_status_of_an_unknown_build(named):
    template = asked(named())["templateID"]
    assert "not found" in read(f"/templates/{template}/builds/{uuid.uuid4()}/status", 400)["message"]


def test_cli_051_a_second_request_of_the_tag_takes_the_place(named):
    name = named()
    first, other = asked(name), asked(f"{name}:v1")
    second = asked(name)

    def status(made: dict) -> dict:
        return read(f"/templates/{made['templateID']}/builds/{made['buildID']}/status?logsOffset=0")

    failed = status(first)
    assert failed["status"] == "error" and "superseded" in failed["reason"]["message"]
    assert status(other)["status"] == status(second)["status"] == "waiting"
    assert status(second)["logEntries"] == status(second)["logs"] == []


def test_cp_128_a_create_names_a_tag_or_a_build(tags):
    tag = tags()
    Template.assign_tags(TEMPLATE, tag)
    build = base()["buildID"]
    for reference in (f"{TEMPLATE}:{tag}", f"{TEMPLATE}:{build}", f"{TEMPLATE}:default"):
        Sandbox.create(reference, timeout=30).kill()
    with pytest.raises(SandboxException, match="404: tag 'nope' does not exist for template"):
        Sandbox.create(f"{TEMPLATE}:nope", timeout=30)


def test_cp_129_a_tag_is_given_to_a_build(tags):
    first, second = tags(), tags()
    given = Template.assign_tags(TEMPLATE, [first, second.upper()])
    assert (given.build_id, sorted(given.tags)) == (base()["buildID"], sorted([first, second]))
    Sandbox.create(f"{TEMPLATE}:{second}", timeout=30).kill()


def test_cli_054_a_tag_of_a_tag(tags):
    first, second = tags(), tags()
    Template.assign_tags(TEMPLATE, first)
    Template.assign_tags(f"{TEMPLATE}:{first}", second)
    assert {first, second} <= {it.tag for it in Template.get_tags(TEMPLATE)}
    Sandbox.create(f"{TEMPLATE}:{second}", timeout=30).kill()


def test_cli_055_a_build_is_tagged_by_its_id(named, tags):
    tag = tags()
    build = base()["buildID"]
    assert Template.assign_tags(f"{TEMPLATE}:{build}", tag).build_id == build
    made = asked(named())
    target = f"{made['aliases'][0]}:{made['buildID']}"
    with pytest.raises(SandboxException, match="404: Template '.*' with tag '.*' not found"):
        Template.assign_tags(target, "unready")


def test_cp_130_tags_that_cannot_be(tags):
    assert tag("POST", target=TEMPLATE, tags=[]).status == 400
    assert tag("POST", target=TEMPLATE, tags=["a b"]).status == 400
    assert tag("POST", target="none-such", tags=["a"]).status == 404
    assert tag("POST", target=f"{TEMPLATE}:none", tags=["a"]).status == 404
    assert "Cannot delete the 'default' tag" in tag("DELETE", name=TEMPLATE, tags=["default"]).text
    gone = tags()
    Template.assign_tags(TEMPLATE, gone)
    assert tag("DELETE", name=TEMPLATE, tags=[gone]).status == 204
    with pytest.raises(SandboxException, match="404: tag"):
        Sandbox.create(f"{TEMPLATE}:{gone}", timeout=30)


def test_cli_056_tags_are_removed_by_a_body(tags):
    assert tag("DELETE", name=TEMPLATE, tags=["default"]).status == 400
    assert tag("DELETE", name=f"{TEMPLATE}:x", tags=["x"]).status == 400
    assert tag("DELETE", name="none-such", tags=["x"]).status == 404
    gone, kept = tags(), tags()
    Template.assign_tags(TEMPLATE, [gone, kept])
    Template.remove_tags(TEMPLATE, gone)
    left = {it.tag for it in Template.get_tags(TEMPLATE)}
    assert kept in left and gone not in left


def test_cp_131_tags_are_listed(tags):
    Template.assign_tags(TEMPLATE, tags())
    listed = read(f"/templates/{base()['templateID']}/tags")
    assert {frozenset(it) for it in listed} == {frozenset({"tag", "buildID", "createdAt"})}
    assert "default" in [it["tag"] for it in listed]


def test_cp_132_aliases(named):
    found = read(f"/templates/aliases/{TEMPLATE}")
    assert set(found) == {"templateID", "public"}
    assert read("/templates/aliases/none-such", 404)
    assert "tag 'zzz' does not exist" in read(f"/templates/aliases/{TEMPLATE}:zzz", 404)["message"]
    name = named()
    made = asked(name)
    assert read(f"/templates/aliases/{quote(made['names'][0], safe='')}") == {
        "templateID": made["templateID"],
        "public": False,
    }


def test_cli_058_exists():
    assert Template.exists(TEMPLATE) is True
    assert Template.exists(f"nonexistent-{uuid.uuid4()}") is False


def test_cp_133_the_teams_own_are_listed(named):
    made = asked(named())
    assert made["templateID"] in [it["templateID"] for it in read("/templates")]
    said = read(f"/templates?teamID={uuid.uuid4()}", 400)
    assert said["message"] == "Team ID param mismatch with the API key"
    read("/templates", 401, **{"X-API-Key": "e2b_00"})


def test_cp_134_pages_of_templates(named):
    made = {asked(named())["templateID"] for _ in range(3)}
    seen, token = [], ""
    while True:
        answer = api("GET", f"/v2/templates?limit=1{token}")
        assert answer.status == 200, answer.text
        seen += [it["templateID"] for it in json.loads(answer.body)]
        if "x-next-token" not in answer.headers:
            break
        token = "&nextToken=" + quote(answer.headers["x-next-token"])
    assert len(seen) == len(set(seen)) and made <= set(seen)


def test_cp_135_builds_of_a_template_newest_first(named):
    name = named()
    builds = [asked(f"{name}:v{number}") for number in range(3)]
    template = builds[0]["templateID"]
    first = api("GET", f"/templates/{template}?limit=2")
    ids = [it["buildID"] for it in json.loads(first.body)["builds"]]
    rest = read(f"/templates/{template}?limit=2&nextToken={quote(first.headers['x-next-token'])}")
    ids += [it["buildID"] for it in rest["builds"]]
    times = {it["buildID"]: it["createdAt"] for it in read(f"/templates/{template}")["builds"]}
    assert set(ids) == {it["buildID"] for it in builds} and len(ids) == 3
    # As times, not as texts: fractions have no zeroes at their end.
    assert [times[it] for it in ids] == sorted(times.values(), key=datetime.fromisoformat, reverse=True)
    read(f"/templates/{name}", 404)


@newer("reads of tags")
def test_sdk_13_reads_of_tags_parse_in_the_generated_client(tags):
    from e2b.api.client import Client
    from e2b.api.client.api.tags import (
        get_templates_template_id_tags_count as count,
        get_templates_template_id_tags_exists as exists,
        get_templates_template_id_tags_groups as groups,
        get_templates_template_id_tags_tag_assignments as assignments,
    )
    from e2b.api.client.api.templates import get_default_templates as defaults

    tag = tags()
    Template.assign_tags(TEMPLATE, tag)
    headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
    with Client(base_url=os.environ["E2B_API_URL"], headers=headers) as client:
        total = count.sync(TEMPLATE, client=client).total
        assert total == len(Template.get_tags(TEMPLATE)) >= 2
        found = exists.sync(TEMPLATE, client=client, tag=f" {tag.upper()}")
        assert (found.exists, found.normalized_tag) == (True, tag)
        page = groups.sync(TEMPLATE, client=client, search=tag)
        assert [it.tag for it in page.tags] == [tag] and page.next_cursor is None
        held = assignments.sync(TEMPLATE, tag, client=client).data
        assert [str(it.build_id) for it in held] == [base()["buildID"]]
        assert page.tags[0].assignments == held and page.tags[0].has_more is False
        first = groups.sync(TEMPLATE, client=client, tags_limit=1)
        second = groups.sync(TEMPLATE, client=client, tags_limit=1, tags_cursor=first.next_cursor)
        assert first.tags[0].tag == tag != second.tags[0].tag
        assert base()["templateID"] in [it.template_id for it in defaults.sync(client=client)]
