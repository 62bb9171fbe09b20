"""The control plane by plain HTTP: authentication, create, read, kill, list and time, with statuses and texts as E2B has them.

What needs a server of its own (other teams, small limits, restarts) is in tests/e2e/test_control_plane.py.
"""

import json
import os
import re
import subprocess
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from conftest import TEMPLATE, Answer, api, request, through_ingress
from e2b import CommandExitException, NotFoundException, Sandbox, SandboxQuery

UNKNOWN = "iaaaaaaaaaaaaaaaaaaaa"


def call(method: str, path: str, body=None, **headers: str) -> Answer:
    """Like [`api`], for a body that is a value; a text goes as it is."""
    sent = body if isinstance(body, str) or body is None else json.dumps(body)
    return api(method, path, sent.encode() if sent is not None else None, **headers)


def ok(answer: Answer, status: int):
    assert answer.status == status, answer
    assert "should-retry" not in answer.headers, "a success must not say so"
    return json.loads(answer.body) if answer.body else None


def refused(answer: Answer, status: int, text: str = "") -> str:
    """An error as the clients read it: the status again as `code`, and the text."""
    assert answer.status == status, answer
    body = json.loads(answer.body)
    assert body["code"] == status and text in body["message"], answer
    assert answer.headers["should-retry"] == "false", answer
    return body["message"]


def when(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def lifetime(made: dict) -> timedelta:
    detail = ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)
    return when(detail["endAt"]) - when(detail["startedAt"])


def left(made: dict) -> float:
    detail = ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)
    return (when(detail["endAt"]) - datetime.now(timezone.utc)).total_seconds()


def closely(seconds: float, wanted: float) -> bool:
    return wanted - 5 < seconds <= wanted + 1


@pytest.fixture
def create():
    """Creates by v1 unless told otherwise: `create(timeout=60)`; gone after the test."""
    made = []

    def make(path: str = "/sandboxes", **fields) -> dict:
        made.append(ok(call("POST", path, {"templateID": TEMPLATE} | fields), 201))
        return made[-1]

    yield make
    for sandbox in made:
        call("DELETE", f"/sandboxes/{sandbox['sandboxID']}")


class TestAuthentication:
    def test_cp_001_health_needs_no_key(self):
        answer = request("GET", os.environ["E2B_API_URL"] + "/health")
        assert answer.status == 200 and answer.text == "Health check successful"
        assert answer.headers["content-type"].startswith("text/plain")

    def test_cp_003_no_key(self):
        refused(call("GET", "/v2/sandboxes", **{"X-API-Key": ""}), 401, "authorization header is missing")

    def test_cp_004_a_key_without_its_prefix(self):
        refused(call("GET", "/v2/sandboxes", **{"X-API-Key": "abc"}), 401, "authorization header is malformed")

    def test_cp_005_a_key_that_is_not_hex(self):
        refused(call("GET", "/v2/sandboxes", **{"X-API-Key": "e2b_zz"}), 401, "Invalid API key format")

    def test_cp_006_an_unknown_key(self):
        answer = call("GET", "/v2/sandboxes", **{"X-API-Key": "e2b_" + "0" * 40})
        refused(answer, 401, "Cannot get the team for the given API key")

    def test_cp_007_header_names_in_lower_case(self):
        key = {"x-api-key": os.environ["E2B_API_KEY"], "X-API-Key": ""}
        ok(call("GET", "/v2/sandboxes", **key), 200)

    def test_cp_008_a_bad_key_comes_before_a_bad_body(self):
        refused(call("POST", "/sandboxes", "{", **{"X-API-Key": "e2b_" + "0" * 40}), 401)
        refused(call("POST", "/sandboxes", "{"), 400)

    def test_cp_017_any_origin_may_call(self):
        url = os.environ["E2B_API_URL"] + "/v2/sandboxes"
        origin = {"Origin": "https://anywhere.example"}
        preflight = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
        answer = request("OPTIONS", url, origin | preflight)
        assert answer.status in (200, 204), answer
        assert answer.headers["access-control-allow-origin"] in ("*", origin["Origin"])
        assert "x-api-key" in answer.headers["access-control-allow-headers"].lower()
        exposed = call("GET", "/v2/sandboxes", **origin).headers["access-control-expose-headers"].lower()
        assert "x-next-token" in exposed and "x-total-running" in exposed

    def test_cp_018_a_body_of_20_mib(self):
        answer = call("POST", "/sandboxes", '{"templateID":"' + "x" * (20 << 20) + '"}')
        assert 400 <= answer.status < 500, answer
        ok(call("GET", "/v2/sandboxes"), 200)

    def test_cp_019_routes_of_old(self):
        for path in ("/instances", "/envs", "/instances/x"):
            refused(call("GET", path), 404, "Endpoints are deprecated, please update your SDK")

    def test_cp_020_builds_of_old(self):
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        text = "Endpoint deprecated please update your CLI to the latest version"
        refused(call("POST", "/templates", "--x--\r\n", **form), 400, text)


class TestCreate:
    def test_cp_021_the_answer(self, create):
        made = create(timeout=60)
        assert re.fullmatch(r"i[a-z0-9]{20}", made["sandboxID"])
        assert made["clientID"] == "6532622b" and made["templateID"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", made["envdVersion"])
        assert "envdAccessToken" not in made

    def test_cp_022_no_template(self):
        assert refused(call("POST", "/sandboxes", {}), 400).startswith("validation error")

    def test_cp_023_no_json(self):
        for body in ("", "{", "[]", '"base"', '{"templateID":7}'):
            refused(call("POST", "/sandboxes", body), 400)

    def test_cp_024_an_unknown_template(self):
        refused(call("POST", "/sandboxes", {"templateID": "nowhere"}), 404, "template 'nowhere' not found")
        answer = call("POST", "/sandboxes", {"templateID": f"{TEMPLATE}:nowhere"})
        refused(answer, 404, f"tag 'nowhere' does not exist for template '{TEMPLATE}")

    def test_cp_025_no_reference(self):
        for reference in ("Bad Name!", "a:b:c", ""):
            refused(call("POST", "/sandboxes", {"templateID": reference}), 400, "Invalid template reference")

    def test_cp_026_the_time_that_was_asked_for(self, create):
        assert abs(lifetime(create(timeout=60)) - timedelta(seconds=60)) < timedelta(seconds=2)
        assert abs(lifetime(create()) - timedelta(seconds=15)) < timedelta(seconds=2)
        assert abs(lifetime(create("/v2/sandboxes")) - timedelta(seconds=300)) < timedelta(seconds=2)

    def test_cp_027_no_time(self):
        refused(call("POST", "/sandboxes", {"templateID": TEMPLATE, "timeout": 0}), 400, "Timeout must be greater than 0")
        refused(call("POST", "/sandboxes", {"templateID": TEMPLATE, "timeout": -1}), 400)

    def test_cp_028_the_longest_time(self, create):
        asked = {"templateID": TEMPLATE, "timeout": 24 * 3600 + 1}
        refused(call("POST", "/sandboxes", asked), 400, "Timeout cannot be greater than 24 hours")
        assert lifetime(create(timeout=24 * 3600)) > timedelta(hours=23, minutes=59)

    def test_cp_029_secure(self, create):
        made = create(timeout=60, secure=True)
        token = made["envdAccessToken"]
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        files = "/files?path=/etc/hostname&username=user"
        assert through_ingress(made["sandboxID"], 49983, files).status == 401
        assert through_ingress(made["sandboxID"], 49983, files, headers={"X-Access-Token": token}).status == 200

    def test_cp_031_private_traffic(self, create):
        private = {"allowPublicTraffic": False}
        refused(call("POST", "/sandboxes", {"templateID": TEMPLATE, "network": private}), 400, "'secure' flag")
        made = create(timeout=60, secure=True, network=private)
        assert made["trafficAccessToken"] and made["trafficAccessToken"] != made["envdAccessToken"]

    def test_cp_032_metadata_and_environment(self, create):
        made = create(timeout=60, metadata={"a": "b"}, envVars={"COLOUR": "green"})
        assert ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)["metadata"] == {"a": "b"}
        assert Sandbox.connect(made["sandboxID"]).commands.run("echo $COLOUR").stdout == "green\n"

    def test_cp_033_file_system_only_needs_auto_pause(self):
        asked = {"templateID": TEMPLATE, "autoPauseMemory": False}
        refused(call("POST", "/sandboxes", asked), 400, "autoPauseMemory=false only applies when autoPause is true.")
        refused(call("POST", "/sandboxes", asked | {"autoPause": True, "autoResume": {"enabled": True}}), 400)

    def test_sdk_01_small_bodies_and_empty_maps(self, create):
        for body in ({}, {"metadata": {}, "envVars": {}}):
            made = create("/v2/sandboxes", **body)
            assert closely(left(made), 300)
            assert made["envdAccessToken"]


class TestDetail:
    def test_cp_034_all_that_is_known(self, create):
        made = create(timeout=60)
        detail = ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)
        assert detail["state"] == "running" and detail["alias"] == TEMPLATE
        assert detail["cpuCount"] >= 1 and detail["memoryMB"] >= 128 and detail["diskSizeMB"] >= 0
        assert detail["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
        assert detail["volumeMounts"] == []
        assert None not in detail.values(), "official clients fail on null"

    def test_cp_036_legacy_ids(self, create):
        made = create(timeout=60)
        plain = ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)
        assert ok(call("GET", f"/sandboxes/{made['sandboxID']}-6532622b"), 200) == plain
        refused(call("GET", "/sandboxes/a-b-c"), 400, "Invalid sandbox ID")

    def test_cp_037_an_unknown_one(self):
        text = f'Sandbox "{UNKNOWN}" doesn\'t exist or you don\'t have access to it'
        refused(call("GET", f"/sandboxes/{UNKNOWN}"), 404, text)

    def test_sdk_11_a_running_one_has_no_pause_mode(self, create):
        assert "pauseMode" not in ok(call("GET", f"/sandboxes/{create(timeout=60)['sandboxID']}"), 200)


class TestKill:
    def test_cp_039_once(self, create):
        path = f"/sandboxes/{create(timeout=60)['sandboxID']}"
        assert ok(call("DELETE", path), 204) is None
        refused(call("GET", path), 404)
        refused(call("DELETE", path), 404)

    def test_cp_043_two_at_once(self, create):
        path = f"/sandboxes/{create(timeout=60)['sandboxID']}"
        with ThreadPoolExecutor(2) as pool:
            statuses = [answer.status for answer in pool.map(lambda _: call("DELETE", path), range(2))]
        assert 204 in statuses and set(statuses) <= {204, 404}
        refused(call("GET", path), 404)


@pytest.fixture(scope="module")
def three():
    """Three sandboxes, oldest first, that nobody else's filter finds."""
    mark = f"cp-{time.monotonic_ns()}"
    made = []
    for number in range(3):
        metadata = {"mark": mark, "n": str(number), "odd": "a b&c=d%"} if number == 1 else {"mark": mark, "n": str(number)}
        body = {"templateID": TEMPLATE, "timeout": 300, "metadata": metadata}
        made.append(ok(call("POST", "/sandboxes", body), 201)["sandboxID"])
        time.sleep(0.02)
    yield mark, made
    for sandbox_id in made:
        call("DELETE", f"/sandboxes/{sandbox_id}")


def metadata(**pairs: str) -> str:
    """The parameter as clients send it: values escaped, the pairs as a query string, and that escaped once more."""
    return urllib.parse.quote(urllib.parse.urlencode({key: urllib.parse.quote(value) for key, value in pairs.items()}))


def listed(answer: Answer) -> list[str]:
    return [item["sandboxID"] for item in ok(answer, 200)]


class TestList:
    def test_cp_048_pages(self, three):
        mark, made = three
        for limit in ("0", "101", "-1", "x"):
            refused(call("GET", f"/v2/sandboxes?limit={limit}"), 400)
        seen, query = [], f"/v2/sandboxes?limit=1&metadata={metadata(mark=mark)}"
        answer = call("GET", query)
        for _ in range(2):
            assert answer.headers["x-total-running"] == "3"
            seen += listed(answer)
            token = urllib.parse.quote(answer.headers["x-next-token"])
            answer = call("GET", f"{query}&nextToken={token}")
        seen += listed(answer)
        assert "x-next-token" not in answer.headers
        assert seen == made[::-1]

    def test_cp_049_tokens_of_nobody(self, three):
        refused(call("GET", "/v2/sandboxes?nextToken=garbage"), 400, "Invalid next token")
        token = call("GET", f"/v2/sandboxes?limit=1&metadata={metadata(mark=three[0])}").headers["x-next-token"]
        refused(call("GET", f"/v2/sandboxes?order=asc&nextToken={urllib.parse.quote(token)}"), 400, "Invalid next token")

    def test_cp_050_states(self, three):
        query = f"/v2/sandboxes?metadata={metadata(mark=three[0])}&state="
        paused = call("GET", query + "paused")
        assert listed(paused) == [] and "x-total-running" not in paused.headers
        both = call("GET", query + "running,paused")
        assert len(listed(both)) == 3 and both.headers["x-total-running"] == "3"

    def test_cp_051_a_state_of_nobody(self):
        refused(call("GET", "/v2/sandboxes?state=bogus"), 400)

    def test_cp_052_odd_characters(self, three):
        mark, made = three
        assert listed(call("GET", f"/v2/sandboxes?metadata={metadata(mark=mark, odd='a b&c=d%')}")) == [made[1]]
        assert listed(call("GET", f"/v2/sandboxes?metadata={metadata(mark=mark, odd='a b')}")) == []

    def test_cp_053_all_pairs_must_match(self, three):
        mark, made = three
        assert listed(call("GET", f"/v2/sandboxes?metadata={metadata(mark=mark, n='2')}")) == [made[2]]
        assert listed(call("GET", f"/v2/sandboxes?metadata={metadata(mark=mark, n='7')}")) == []
        refused(call("GET", "/v2/sandboxes?metadata=a%3D%25zz"), 400)

    def test_cp_054_order(self, three):
        mark, made = three
        query = f"/v2/sandboxes?metadata={metadata(mark=mark)}"
        assert listed(call("GET", query)) == listed(call("GET", query + "&order=desc")) == made[::-1]
        assert listed(call("GET", query + "&order=asc")) == made
        refused(call("GET", query + "&order=sideways"), 400)

    def test_cp_055_started_after_is_inclusive(self, three):
        mark, made = three
        started = ok(call("GET", f"/sandboxes/{made[1]}"), 200)["startedAt"]
        query = f"/v2/sandboxes?metadata={metadata(mark=mark)}&startedAfter={urllib.parse.quote(started)}"
        assert listed(call("GET", query)) == [made[2], made[1]]

    def test_cp_056_by_template(self, three):
        mark, made = three
        query = f"/v2/sandboxes?metadata={metadata(mark=mark)}&template="
        assert listed(call("GET", query + TEMPLATE)) == made[::-1]
        unknown = call("GET", query + "nowhere")
        assert listed(unknown) == [] and unknown.headers["x-total-running"] == "0"
        refused(call("GET", query + "a:b"), 400, "Invalid template")

    def test_cp_058_the_old_list(self, three):
        mark, made = three
        items = ok(call("GET", f"/sandboxes?metadata={metadata(mark=mark)}"), 200)
        assert [item["sandboxID"] for item in items] == made[::-1]
        assert all(item["state"] == "running" and item["volumeMounts"] == [] for item in items)


class TestTime:
    def test_cp_059_longer_and_shorter(self, create):
        made = create(timeout=60)
        path = f"/sandboxes/{made['sandboxID']}/timeout"
        for seconds in (120, 30):
            ok(call("POST", path, {"timeout": seconds}), 204)
            assert closely(left(made), seconds)

    def test_cp_060_zero_is_now(self, create):
        made = create(timeout=60)
        ok(call("POST", f"/sandboxes/{made['sandboxID']}/timeout", {"timeout": 0}), 204)
        deadline = time.monotonic() + 5
        while call("GET", f"/sandboxes/{made['sandboxID']}").status != 404:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_cp_061_more_than_the_longest_is_the_longest(self, create):
        made = create(timeout=60)
        ok(call("POST", f"/sandboxes/{made['sandboxID']}/timeout", {"timeout": 48 * 3600}), 204)
        assert abs(lifetime(made) - timedelta(hours=24)) < timedelta(seconds=2)

    def test_cp_062_of_nobody(self, create):
        refused(call("POST", f"/sandboxes/{UNKNOWN}/timeout", {"timeout": 60}), 404)
        path = f"/sandboxes/{create(timeout=60)['sandboxID']}/timeout"
        for body in ({"timeout": -1}, {}, {"timeout": "x"}):
            refused(call("POST", path, body), 400)

    def test_cp_064_a_refresh_only_extends(self, create):
        made = create(timeout=100)
        path = f"/sandboxes/{made['sandboxID']}/refreshes"
        for bad in (3601, -1):
            refused(call("POST", path, {"duration": bad}), 400)
        before = ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)["endAt"]
        ok(call("POST", path, {"duration": 30}), 204)
        assert ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)["endAt"] == before
        ok(call("POST", path, {"duration": 200}), 204)
        assert closely(left(made), 200)

    def test_cp_065_a_refresh_gives_fifteen_seconds(self, create):
        made = create(timeout=8)
        ok(call("POST", f"/sandboxes/{made['sandboxID']}/refreshes", {}), 204)
        assert closely(left(made), 15)

    def test_cp_066_over_when_its_time_is(self, create):
        began = time.monotonic()
        made = create(timeout=5)
        while call("GET", f"/sandboxes/{made['sandboxID']}").status != 404:
            assert time.monotonic() < began + 5 + 5, "five times the second that it may take"
            time.sleep(0.05)
        assert time.monotonic() > began + 4.5
        answer = through_ingress(made["sandboxID"], 49983, "/health")
        assert answer.status == 502 and "was not found" in answer.text

    def test_sdk_02_a_connect_needs_no_body(self, create):
        made = create(timeout=60)
        for version, bodies in {"/v2": (None, "", {}, {"memory": False}), "": ({"timeout": 300, "memory": False},)}.items():
            for body in bodies:
                answer = ok(call("POST", f"{version}/sandboxes/{made['sandboxID']}/connect", body), 200)
                assert answer["sandboxID"] == made["sandboxID"]
                assert closely(left(made), 300)
        refused(call("POST", f"/sandboxes/{made['sandboxID']}/connect", {}), 400, "timeout")
        refused(call("POST", f"/v2/sandboxes/{made['sandboxID']}/connect", {"timeout": 24 * 3600 + 1}), 400)
        refused(call("POST", f"/v2/sandboxes/{UNKNOWN}/connect", {}), 404)


class TestNewestClients:
    def test_sdk_03_the_same_key_is_the_same_sandbox(self, create):
        key = {"Idempotency-Key": f"cp-{time.monotonic_ns()}"}
        body = {"templateID": TEMPLATE, "timeout": 60}
        first = ok(call("POST", "/v2/sandboxes", body, **key), 201)
        try:
            assert ok(call("POST", "/v2/sandboxes", body, **key), 201)["sandboxID"] == first["sandboxID"]
            answer = call("POST", "/v2/sandboxes", body | {"timeout": 61}, **key)
            refused(answer, 422)
            assert json.loads(answer.body)["error_code"] == "idempotency_request_mismatch"
        finally:
            ok(call("DELETE", f"/sandboxes/{first['sandboxID']}"), 204)
        refused(call("POST", "/v2/sandboxes", body, **{"Idempotency-Key": "No_Good"}), 400)

    def test_sdk_05_no_success_speaks_of_retrying(self, create):
        made = create("/v2/sandboxes")
        for method, path, body in [
            ("GET", "/v2/sandboxes", None),
            ("GET", f"/sandboxes/{made['sandboxID']}", None),
            ("POST", f"/v2/sandboxes/{made['sandboxID']}/connect", {}),
            ("POST", f"/sandboxes/{made['sandboxID']}/timeout", {"timeout": 60}),
            ("DELETE", f"/sandboxes/{made['sandboxID']}", None),
        ]:
            answer = call(method, path, body)
            assert 200 <= answer.status < 300 and "should-retry" not in answer.headers, answer
            assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-e2b-trace-id"])


class TestMetrics:
    def test_cp_144_samples(self, create):
        # A CPU that is busy, memory that is held, a file, and traffic.
        made = create(timeout=120, secure=True)
        sandbox = Sandbox.connect(made["sandboxID"])
        work = "b = bytearray(200 << 20)\nwhile True: pass"
        sandbox.commands.run(f"head -c 30000000 /dev/urandom > /tmp/f; sync; python3 -c '{work}'", background=True, timeout=0)
        path, points = f"/sandboxes/{made['sandboxID']}/metrics", []
        deadline = time.monotonic() + 30
        while not any(point["cpuUsedPct"] > 20 and point["diskUsed"] > 29_000_000 for point in points):
            assert time.monotonic() < deadline, points
            time.sleep(0.5)
            points = ok(call("GET", path), 200)
        detail = ok(call("GET", f"/sandboxes/{made['sandboxID']}"), 200)
        last = points[-1]
        assert last["memTotal"] == detail["memoryMB"] << 20 and last["cpuCount"] == detail["cpuCount"]
        assert last["diskTotal"] == detail["diskSizeMB"] << 20
        assert 200 << 20 < last["memUsed"] < last["memTotal"] and last["memCache"] > 0
        assert last["processCount"] >= 3, "init, envd and the program"
        assert all(0 <= point["cpuUsedPct"] <= 100 for point in points)
        assert [point["timestampUnix"] for point in points] == sorted({point["timestampUnix"] for point in points})
        assert abs(when(last["timestamp"]).timestamp() - last["timestampUnix"]) < 1
        now = int(time.time())
        assert ok(call("GET", f"{path}?start={now + 60}&end={now + 120}"), 200) == []
        refused(call("GET", f"{path}?start={now}&end={now - 60}"), 400, "Invalid time range for metrics")
        assert ok(call("GET", f"/sandboxes/{UNKNOWN}/metrics"), 200) == []
        by_package = sandbox.get_metrics()
        assert by_package and by_package[-1].mem_total == last["memTotal"]

    def test_cp_145_of_several(self, create):
        made = create(timeout=60)
        ids = ",".join([made["sandboxID"], UNKNOWN, made["sandboxID"]])
        deadline = time.monotonic() + 30
        while not (found := ok(call("GET", f"/sandboxes/metrics?sandbox_ids={ids}"), 200)["sandboxes"]):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert list(found) == [made["sandboxID"]] and found[made["sandboxID"]]["memTotal"] > 0
        many = ",".join(f"i{number}" for number in range(101))
        refused(call("GET", f"/sandboxes/metrics?sandbox_ids={many}"), 400, "maximum is 100")


class TestLogs:
    def test_cp_146_what_happened(self, own):
        sandbox = own(timeout=120)
        sandbox.commands.run("true")
        with pytest.raises(CommandExitException):
            sandbox.commands.run("exit 3")
        v1, v2 = f"/sandboxes/{sandbox.sandbox_id}/logs", f"/v2/sandboxes/{sandbox.sandbox_id}/logs"
        lines = [json.loads(line["line"]) for line in ok(call("GET", v1), 200)["logs"]]
        assert all(isinstance(line["level"], str) and isinstance(line["logger"], str) for line in lines)
        assert [line["message"] for line in lines] == ["sandbox started"] + ["process_start", "process_end"] * 2
        newest = ok(call("GET", v2), 200)["logs"]
        oldest = ok(call("GET", v2 + "?direction=forward"), 200)["logs"]
        assert [line["message"] for line in newest] == [line["message"] for line in oldest][::-1]
        assert [when(line["timestamp"]) for line in oldest] == sorted(when(line["timestamp"]) for line in oldest)
        assert newest[0]["fields"]["exit_code"] == "3" and newest[0]["level"] == "warn"
        started = ok(call("GET", v2 + "?search=" + urllib.parse.quote("exit 3")), 200)["logs"]
        assert [line["message"] for line in started] == ["process_start"]
        assert ok(call("GET", v2 + "?level=error"), 200)["logs"] == []
        assert [line["level"] for line in ok(call("GET", v2 + "?level=warn"), 200)["logs"]] == ["warn"]
        cursor = int(when(oldest[-1]["timestamp"]).timestamp() * 1000)
        assert ok(call("GET", f"{v2}?cursor={cursor}&direction=forward"), 200)["logs"][-1] == oldest[-1]
        assert ok(call("GET", f"/v2/sandboxes/{UNKNOWN}/logs"), 200) == {"logs": []}
        assert ok(call("GET", f"/sandboxes/{UNKNOWN}/logs"), 200) == {"logs": [], "logEntries": []}

    def test_they_outlive_the_sandbox_and_tell_no_output(self, own):
        sandbox = own(timeout=120)
        sandbox.commands.run("echo a-secret-word; echo another-one >&2", envs={"TOKEN": "of-the-environment"})
        sandbox.kill()
        lines = ok(call("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs?direction=forward"), 200)["logs"]
        assert [line["message"] for line in lines] == ["sandbox started", "process_start", "process_end", "sandbox ended"]
        assert lines[-1]["fields"]["cause"] == "killed"
        assert "of-the-environment" not in json.dumps(lines)
        assert not any("a-secret-word" in json.dumps(line) for line in lines if line["message"] != "process_start")

    def test_a_talkative_guest_is_bounded(self, own):
        sandbox = own(timeout=240)
        start = json.dumps({"process": {"cmd": "/no/such/program", "args": ["x" * 1000]}})
        envelope = b"\0" + len(start).to_bytes(4, "big") + start.encode()
        sandbox.files.write("/tmp/start", envelope)
        # As the guest itself may do it: its own daemon, asked again and again.
        sandbox.commands.run(
            "for i in $(seq 600); do curl -s -o /dev/null -H \"X-Access-Token: $T\" -H 'Content-Type: application/connect+json' "
            "--data-binary @/tmp/start http://127.0.0.1:49983/process.Process/Start; done",
            envs={"T": sandbox._envd_access_token}, timeout=200,
        )
        lines = ok(call("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs"), 200)["logs"]
        assert any(line["message"] == "sandbox started" for line in lines)
        assert 50 < len(lines) <= 600 and len(json.dumps(lines)) < 400_000, f"{len(lines)} lines"

    def test_the_daemons_log_is_the_hosts(self, own):
        sandbox = own(timeout=120)
        answer = through_ingress(sandbox.sandbox_id, 49983, "/logs", headers={"X-Access-Token": sandbox._envd_access_token})
        assert answer.status == 404, answer

    def test_bad_parameters(self):
        path = f"/v2/sandboxes/{UNKNOWN}/logs?"
        for bad in ("cursor=x", "limit=1001", "direction=up", "level=loud", "search=" + "x" * 257):
            refused(call("GET", path + bad), 400, bad.split("=")[0])
        refused(call("GET", "/v2/sandboxes/a-b-c/logs"), 400, "Invalid sandbox ID")


class TestByThePackage:
    def test_envd_159_metadata_with_odd_characters(self, own):
        metadata = {"who": "a b&c=d", "what": "é %41"}
        sandbox = own(timeout=60, metadata=metadata, envs={"A": "b c&d"})
        assert sandbox.commands.run("echo $A").stdout == "b c&d\n"
        found = Sandbox.list(query=SandboxQuery(metadata=metadata)).next_items()
        assert [(item.sandbox_id, item.metadata) for item in found] == [(sandbox.sandbox_id, metadata)]
        assert Sandbox.list(query=SandboxQuery(metadata={"who": "a b"})).next_items() == []

    def test_envd_160_of_nobody(self):
        assert Sandbox.kill(UNKNOWN) is False
        with pytest.raises(NotFoundException):
            Sandbox.get_info(UNKNOWN)
        refused(call("DELETE", f"/sandboxes/{UNKNOWN}"), 404)

    def test_envd_163_keys_have_the_form_that_old_packages_want(self):
        # The older generation looks at it before it sends anything.
        script = "from e2b import Sandbox; print(Sandbox.list().next_items() is not None)"
        environment = {name: value for name, value in os.environ.items() if name != "E2B_VALIDATE_API_KEY"}
        command = [".cache/venv-245/bin/python", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert (done.returncode, done.stdout) == (0, "True\n"), done
        done = subprocess.run(command, capture_output=True, text=True, env=environment | {"E2B_API_KEY": "x"}, timeout=60)
        assert done.returncode != 0 and "Invalid API key format" in done.stderr, done


class TestNotOffered:
    def test_cp_101_proxy_and_rules(self):
        asked = {"templateID": TEMPLATE, "network": {"egressProxy": {"address": "proxy.example:1080"}}}
        text = "Egress proxy (network.egressProxy) is not enabled for this team."
        refused(call("POST", "/sandboxes", asked), 403, text)
        rules = {"example.com": [{"transform": {"headers": {"X-A": "b"}}}]}
        asked = {"templateID": TEMPLATE, "network": {"rules": rules}}
        refused(call("POST", "/sandboxes", asked), 400, "Network transform rules are not available for your team.")
