"""The protocol below the SDKs: frames, codes, headers, tokens and users, byte by byte."""

import os
import time

import httpx
import pytest
from conftest import TEMPLATE
from e2b import AuthenticationException, ConnectionConfig, Sandbox
from packaging.version import Version
from wire import STREAM, Wire, encoded, envelope

LIST, START, STAT = "process.Process/List", "process.Process/Start", "filesystem.Filesystem/Stat"


@pytest.fixture(scope="module")
def wire(sandbox):
    return Wire.to(sandbox)


def test_envd_001_a_unary_call(wire):
    answer = wire.call(LIST, {})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {}


def test_envd_002_identity_is_an_encoding(wire):
    headers = {"Content-Encoding": "identity", "Accept-Encoding": "identity"}
    assert wire.ok(STAT, {"path": "/etc"}, headers)["entry"]["path"] == "/etc"


def test_envd_003_the_type_of_a_stream_is_exact(wire):
    stream = wire.run("true")
    assert stream.response.headers["content-type"] == "application/connect+json"
    assert stream.code() == "ok"


def test_envd_004_a_stream_has_a_last_message(wire):
    raw = b"".join(wire.run("true").response.iter_raw())
    assert raw.endswith(b"\x02\x00\x00\x00\x02{}")


def test_envd_005_a_request_in_chunks_or_of_known_length(wire):
    message = envelope({"process": {"cmd": "echo", "args": ["hi"]}, "stdin": False})
    assert wire.stream(START, None, content=message).outcome().stdout == b"hi\n"
    pieces = iter([message[:3], message[3:9], message[9:]])
    assert wire.stream(START, None, content=pieces).outcome().stdout == b"hi\n"


def test_envd_006_identity_is_an_encoding_of_streams(wire):
    headers = {"Connect-Content-Encoding": "identity", "Connect-Accept-Encoding": "identity"}
    assert wire.run("echo hi", headers=headers).outcome().stdout == b"hi\n"


def test_envd_007_frames_come_at_once_and_plain(wire):
    stream = wire.run(
        "read line; for i in 1 2 3; do date +%s%N; sleep 0.5; done",
        headers={"Accept-Encoding": "zstd,gzip,br"},
        stdin=True,
    )
    assert "content-encoding" not in stream.response.headers
    pid = stream.pid()
    wire.ok("process.Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": encoded("\n")}})
    arrived = []
    for message in stream:
        if "data" in message["event"]:
            arrived.append(time.monotonic())
    gaps = [later - earlier for earlier, later in zip(arrived, arrived[1:])]
    # Written half a second apart, so heard half a second apart: nothing collects them.
    assert len(arrived) == 3 and all(0.3 < gap < 1.5 for gap in gaps), gaps


def test_envd_008_an_early_error_is_the_streams_end(wire):
    stream = wire.start("pwd", cwd="/no/such/place")
    assert stream.next() is None
    assert stream.end["error"]["code"] == "invalid_argument"


def test_envd_009_an_error_has_a_status_and_a_code(wire):
    answer = wire.call(STAT, {"path": "/no/such/file"})
    assert answer.status_code == 404 and answer.headers["content-type"].startswith("application/json")
    assert answer.json()["code"] == "not_found" and "/no/such/file" in answer.json()["message"]
    wrong = wire.call("process.Process/SendSignal", {"process": {"pid": 1}})
    assert (wrong.status_code, wrong.json()["code"]) == (404, "not_found")


def test_envd_010_methods_names_and_types(wire):
    answer = wire.request("GET", f"/{LIST}")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert wire.call("process.Process/Nothing", {}).status_code == 404
    assert wire.request("POST", f"/{LIST}", {"Content-Type": "text/plain"}, content=b"{}").status_code == 415


def test_envd_011_malformed_and_unknown(wire):
    assert wire.refused(LIST, b"{") == "invalid_argument"
    assert wire.refused(LIST, b"") == "invalid_argument"
    assert wire.ok(STAT, {"path": "/etc", "unheardOf": {"a": [1]}})["entry"]["name"] == "etc"


def test_envd_012_numbers_for_names_and_both_spellings(wire):
    stream = wire.run("exec sleep 60")
    wire.ok("process.Process/SendSignal", {"process": {"pid": stream.pid()}, "signal": 9})
    assert stream.outcome().end["status"] == "signal: killed"
    watcher = wire.ok("filesystem.Filesystem/CreateWatcher", {"path": "/tmp", "include_entry": True})["watcherId"]
    assert wire.ok("filesystem.Filesystem/GetWatcherEvents", {"watcher_id": watcher}) == {}
    assert wire.ok("filesystem.Filesystem/RemoveWatcher", {"watcherId": watcher}) == {}


def test_envd_013_long_integers_are_strings(wire, sandbox):
    sandbox.files.write("/tmp/five", "12345")
    assert wire.ok(STAT, {"path": "/tmp/five"})["entry"]["size"] == "5"
    assert sandbox.files.get_info("/tmp/five").size == 5


def test_envd_014_empty_input_is_input(wire):
    stream = wire.start("cat", stdin=True)
    selector = {"pid": stream.pid()}
    assert wire.ok("process.Process/SendInput", {"process": selector, "input": {"stdin": ""}}) == {}
    wire.ok("process.Process/CloseStdin", {"process": selector})
    assert stream.outcome().end["status"] == "exit status 0"


def test_envd_015_a_timeout_has_ten_digits(wire):
    assert wire.refused(LIST, {}, {"Connect-Timeout-Ms": "12345678901"}) == "invalid_argument"
    assert wire.refused(LIST, {}, {"Connect-Timeout-Ms": "soon"}) == "invalid_argument"
    assert wire.ok(LIST, {}, {"Connect-Timeout-Ms": "1234567890"}) == {}


def test_envd_016_the_protocols_version(wire):
    assert wire.refused(LIST, {}, {"Connect-Protocol-Version": "2"}) == "invalid_argument"
    assert wire.ok(LIST, {}, {"Connect-Protocol-Version": "1"}) == {}
    assert "connect-protocol-version" not in wire.headers and wire.ok(LIST, {}) == {}


def test_envd_017_without_the_token_nothing_is_done(wire, sandbox):
    for token in ({}, {"X-Access-Token": "0" * 64}):
        stranger = Wire(wire.base, wire.without_token().headers | token)
        answer = stranger.call(LIST, {})
        assert (answer.status_code, answer.json()["code"]) == (401, 401)
        stream = stranger.request("POST", f"/{START}", {"Content-Type": STREAM}, content=envelope({}))
        assert stream.status_code == 401
    config = ConnectionConfig(
        extra_sandbox_headers={
            "E2b-Sandbox-Id": sandbox.sandbox_id,
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": "0" * 64,
        }
    )
    intruder = Sandbox(
        sandbox_id=sandbox.sandbox_id,
        envd_version=sandbox._envd_version,
        envd_access_token="0" * 64,
        sandbox_domain=sandbox.sandbox_domain,
        connection_config=config,
    )
    with pytest.raises(AuthenticationException):
        intruder.commands.list()
    with pytest.raises(AuthenticationException):
        intruder.commands.run("true")


def test_envd_018_a_token_or_no_need_of_one(wire):
    assert wire.ok(LIST, {}) == {}
    # Only the first version of the API has sandboxes that anybody may use.
    made = httpx.post(
        os.environ["E2B_API_URL"] + "/sandboxes",
        json={"templateID": TEMPLATE, "timeout": 60, "secure": False},
        headers={"X-API-Key": os.environ["E2B_API_KEY"]},
    ).json()
    try:
        assert not made.get("envdAccessToken")
        anybody = Wire(wire.base, {"E2b-Sandbox-Id": made["sandboxID"], "E2b-Sandbox-Port": "49983"})
        assert anybody.run("echo hi").outcome().stdout == b"hi\n"
    finally:
        Sandbox.kill(made["sandboxID"])


def test_envd_019_a_browser_may_ask_first(wire):
    answer = wire.without_token().request(
        "OPTIONS",
        f"/{START}",
        {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-access-token,connect-protocol-version",
        },
    )
    assert answer.is_success and answer.headers["access-control-allow-origin"] == "*"
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert allowed == "*" or "x-access-token" in allowed
    answer = wire.call(LIST, {}, {"Origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_envd_020_an_unknown_user(wire):
    headers = {"Authorization": "Basic " + encoded("nobody-known:")}
    answer = wire.call(STAT, {"path": "/etc"}, headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "nobody-known" in answer.json()["message"]
    assert wire.run("true", headers=headers).code() == "unauthenticated"


def test_envd_021_the_password_means_nothing(wire):
    for password in ("", "x", "a:b"):
        headers = {"Authorization": "Basic " + encoded(f"root:{password}")}
        assert wire.run("id -un", headers=headers).outcome().stdout == b"root\n"


def test_envd_162_the_version_is_one_that_clients_parse(sandbox):
    version = sandbox._envd_version
    # The newest gate of the packages; a suffix would not parse in all of them.
    assert Version(str(version)) >= Version("0.6.4") and Version(str(version)).is_prerelease is False
    assert sandbox.files.write("/tmp/gated", "x", metadata={"a": "b"}).metadata == {"a": "b"}


def test_envd_165_many_headers(sandbox):
    metadata = {f"key-{n}": f"value {n}" for n in range(50)}
    assert sandbox.files.write("/tmp/many", "x", metadata=metadata).metadata == metadata
    assert sandbox.files.get_info("/tmp/many").metadata == metadata

