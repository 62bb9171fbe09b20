"""Create, connect, info, list, time and kill."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from conftest import TEMPLATE, api, through_ingress
from e2b import (
    AuthenticationException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

UNKNOWN = "iaaaaaaaaaaaaaaaaaaaa"


def left(sandbox: Sandbox) -> timedelta:
    return sandbox.get_info().end_at - datetime.now(timezone.utc)


def test_a_new_sandbox_is_usable_and_described(own):
    sandbox = own(metadata={"purpose": "test"}, envs={"COLOUR": "green"})
    assert re.fullmatch(r"i[a-z0-9]{20}", sandbox.sandbox_id)
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.state == SandboxState.RUNNING
    assert info.name == TEMPLATE
    assert info.metadata == {"purpose": "test"}
    assert info.cpu_count >= 1 and info.memory_mb >= 128
    assert re.fullmatch(r"\d+\.\d+\.\d+", info.envd_version)
    assert sandbox.commands.run("echo $COLOUR").stdout == "green\n"


def test_the_default_time_is_five_minutes(own):
    with Sandbox.create(TEMPLATE) as sandbox:
        assert timedelta(seconds=285) < left(sandbox) <= timedelta(seconds=301)


def test_a_sandbox_is_connected_to_from_elsewhere(own):
    first = own(timeout=60)
    first.files.write("/tmp/shared", "seen")
    second = Sandbox.connect(first.sandbox_id, timeout=600)
    assert second.files.read("/tmp/shared") == "seen"
    assert left(first) > timedelta(seconds=500), "connect extends"
    Sandbox.connect(first.sandbox_id, timeout=10)
    assert left(first) > timedelta(seconds=500), "connect never shortens"


def test_set_timeout_moves_the_end_both_ways(own):
    sandbox = own(timeout=60)
    sandbox.set_timeout(300)
    assert timedelta(seconds=280) < left(sandbox) <= timedelta(seconds=301)
    Sandbox.set_timeout(sandbox.sandbox_id, 30)
    assert timedelta(seconds=10) < left(sandbox) <= timedelta(seconds=31)


def test_a_sandbox_ends_on_time(own):
    sandbox = own(timeout=3)
    assert sandbox.is_running()
    deadline = time.monotonic() + 15
    while sandbox.is_running():
        assert time.monotonic() < deadline, "still running long after its end"
        time.sleep(0.1)
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()
    assert not sandbox.kill()


def test_expiry_ends_a_running_command(own):
    sandbox = own(timeout=3)
    started = time.monotonic()
    with pytest.raises(TimeoutException, match="sandbox"):
        sandbox.commands.run("sleep 60")
    assert time.monotonic() - started < 20


def test_envd_028_kill_ends_a_running_command(own):
    sandbox = own()
    timer = threading.Timer(1.0, lambda: Sandbox.kill(sandbox.sandbox_id))
    timer.start()
    started = time.monotonic()
    with pytest.raises(TimeoutException) as caught:
        sandbox.commands.run("sleep 60", timeout=0)
    timer.join()
    assert time.monotonic() - started < 1 + 5 * 1.2
    assert "sandbox" in str(caught.value)


def test_kill_is_final(own):
    sandbox = own()
    assert sandbox.kill()
    assert not sandbox.is_running()
    assert not sandbox.kill()
    assert not Sandbox.kill(sandbox.sandbox_id)
    for call in (
        sandbox.get_info,
        lambda: sandbox.set_timeout(10),
        lambda: Sandbox.connect(sandbox.sandbox_id),
    ):
        with pytest.raises(SandboxNotFoundException):
            call()
    # The ingress forgets it as well, at once and for every port.
    for port in (49983, 8000):
        answer = through_ingress(sandbox.sandbox_id, port)
        assert answer.status == 502 and "was not found" in answer.text


def test_many_kills_at_once_agree(own):
    sandbox = own()
    with ThreadPoolExecutor(8) as pool:
        killed = list(pool.map(lambda _: Sandbox.kill(sandbox.sandbox_id), range(8)))
    assert any(killed)
    assert not sandbox.is_running()


def test_many_sandboxes_at_once(own):
    def made_and_used(number: int) -> str:
        with Sandbox.create(TEMPLATE, timeout=120) as sandbox:
            return sandbox.commands.run(f"echo {number}").stdout

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(made_and_used, range(20))) == [f"{n}\n" for n in range(20)]


def test_sandboxes_do_not_see_each_other(own):
    one, two = own(), own()
    one.files.write("/tmp/secret", "of one")
    assert not two.files.exists("/tmp/secret")
    one.commands.run("sleep 300", background=True)
    assert "sleep 300" not in two.commands.run("ps axww -o args").stdout


@pytest.fixture(scope="module")
def three():
    """Three sandboxes with a mark of their own, oldest first."""
    mark = f"list-{time.monotonic_ns()}"
    made = []
    for number in range(3):
        made.append(Sandbox.create(TEMPLATE, timeout=300, metadata={"mark": mark, "n": f"{number} & more"}))
        time.sleep(0.05)
    yield mark, made
    for sandbox in made:
        sandbox.kill()


class TestList:
    def test_pages_hold_everything_newest_first(self, three):
        mark, made = three
        pages = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}), limit=2)
        first = pages.next_items()
        assert len(first) == 2 and pages.has_next
        second = pages.next_items()
        assert not pages.has_next
        assert [info.sandbox_id for info in first + second] == [s.sandbox_id for s in reversed(made)]

    def test_metadata_with_spaces_and_ampersands_filters(self, three):
        mark, made = three
        found = Sandbox.list(query=SandboxQuery(metadata={"mark": mark, "n": "1 & more"})).next_items()
        assert [info.sandbox_id for info in found] == [made[1].sandbox_id]

    def test_state_filters(self, three):
        mark, _ = three
        paused = SandboxQuery(metadata={"mark": mark}, state=[SandboxState.PAUSED])
        assert Sandbox.list(query=paused).next_items() == []
        running = SandboxQuery(metadata={"mark": mark}, state=[SandboxState.RUNNING])
        assert len(Sandbox.list(query=running).next_items()) == 3

    def test_a_killed_sandbox_is_not_listed(self, three):
        mark, _ = three
        with Sandbox.create(TEMPLATE, metadata={"mark": mark}) as sandbox:
            gone = sandbox.sandbox_id
        found = Sandbox.list(query=SandboxQuery(metadata={"mark": mark})).next_items()
        assert gone not in [info.sandbox_id for info in found]


class TestErrors:
    def test_unknown_template(self):
        with pytest.raises(SandboxException, match="404: template 'no-such-template' not found"):
            Sandbox.create("no-such-template")

    def test_unknown_sandbox(self):
        assert not Sandbox.kill(UNKNOWN)
        with pytest.raises(SandboxNotFoundException):
            Sandbox.get_info(UNKNOWN)
        with pytest.raises(SandboxNotFoundException):
            Sandbox.connect(UNKNOWN)
        with pytest.raises(SandboxNotFoundException):
            Sandbox.set_timeout(UNKNOWN, 60)

    def test_unknown_key(self):
        with pytest.raises(AuthenticationException):
            Sandbox.create(TEMPLATE, api_key="e2b_" + "0" * 40)

    def test_malformed_key(self):
        with pytest.raises(AuthenticationException):
            Sandbox.create(TEMPLATE, api_key="e2b_zz", validate_api_key=False)

    def test_too_long_a_life(self):
        with pytest.raises(SandboxException, match="Timeout cannot be greater than 24 hours"):
            Sandbox.create(TEMPLATE, timeout=25 * 3600)

    def test_no_life_at_all(self):
        with pytest.raises(SandboxException, match="400"):
            Sandbox.create(TEMPLATE, timeout=-1)

    def test_every_error_is_json_with_its_status(self):
        for method, path, status in [
            ("GET", f"/sandboxes/{UNKNOWN}", 404),
            ("DELETE", f"/sandboxes/{UNKNOWN}", 404),
            ("POST", "/sandboxes", 400),
            ("GET", "/v2/sandboxes?limit=0", 400),
            ("GET", "/v2/sandboxes?nextToken=garbage", 400),
            ("POST", f"/sandboxes/{UNKNOWN}/pause", 400),
            ("GET", "/no/such/route", 404),
        ]:
            answer = api(method, path, b"{" if method == "POST" else None)
            assert answer.status == status, (method, path, answer)
            assert f'"code":{status}' in answer.text.replace(" ", ""), (method, path, answer)
            assert answer.headers.get("should-retry") == "false", (method, path, answer)

    def test_authentication_comes_before_validation(self):
        answer = api("POST", "/sandboxes", b"{", **{"X-API-Key": "e2b_" + "0" * 40})
        assert answer.status == 401
        missing = api("GET", "/v2/sandboxes", **{"X-API-Key": ""})
        assert missing.status == 401 and "authorization header is missing" in missing.text


def test_v1_create_honours_secure():
    answer = api("POST", "/sandboxes", b'{"templateID":"%s","timeout":60}' % TEMPLATE.encode())
    assert answer.status == 201, answer
    made = json.loads(answer.body)
    try:
        assert "envdAccessToken" not in made
        assert through_ingress(made["sandboxID"], 49983, "/health").status == 204
    finally:
        assert api("DELETE", f"/sandboxes/{made['sandboxID']}").status == 204
        assert api("GET", f"/sandboxes/{made['sandboxID']}").status == 404
