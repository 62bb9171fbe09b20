"""Pause, resume, auto-pause, auto-resume, snapshots and forks, through the official package."""

import asyncio
import http.client
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

import pytest
from conftest import TEMPLATE, api, request, through_ingress
from e2b import (
    AsyncSandbox,
    CommandExitException,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)
from generation import OLD

UNKNOWN = "iaaaaaaaaaaaaaaaaaaaa"
COUNTER = """
import http.server, threading, time
count = 0
def work():
    global count
    while True:
        count += 1
        time.sleep(0.01)
threading.Thread(target=work, daemon=True).start()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(count).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Answer).serve_forever()
"""


def count(sandbox_id: str) -> int:
    """What the counter says, which lives in memory only."""
    for _ in range(50):
        answer = through_ingress(sandbox_id, 8000)
        if answer.status == 200:
            return int(answer.text)
        time.sleep(0.1)
    raise AssertionError(answer)


def counting(sandbox: Sandbox) -> int:
    """Starts the counter; its pid."""
    sandbox.files.write("/tmp/counter.py", COUNTER)
    pid = sandbox.commands.run("exec python3 /tmp/counter.py", background=True, timeout=0).pid
    assert count(sandbox.sandbox_id) >= 0
    return pid


def detail(sandbox_id: str) -> dict:
    answer = api("GET", f"/sandboxes/{sandbox_id}")
    assert answer.status == 200, answer
    return json.loads(answer.body)


def post(path: str, body: dict | None = None, **headers: str):
    return api("POST", path, json.dumps(body or {}).encode(), **headers)


def listed(states: list[SandboxState], mark: str) -> list[str]:
    query = SandboxQuery(metadata={"mark": mark}, state=states)
    return [item.sandbox_id for item in Sandbox.list(query=query).next_items()]


def wait_for(state: str, sandbox_id: str, within: float = 30):
    end = time.monotonic() + within
    while detail(sandbox_id)["state"] != state:
        assert time.monotonic() < end, f"not {state} within {within} s"
        time.sleep(0.1)


def test_cp_068_a_paused_sandbox_says_when(own):
    sandbox = own(metadata={"mark": "cp068"})
    assert sandbox.pause() is True
    info = sandbox.get_info()
    assert info.state == SandboxState.PAUSED
    assert timedelta(0) <= datetime.now(timezone.utc) - info.end_at < timedelta(seconds=60)
    assert listed([SandboxState.PAUSED], "cp068") == [sandbox.sandbox_id]
    assert detail(sandbox.sandbox_id)["pauseMode"] == "full"
    assert not sandbox.is_running()


def test_memory_processes_and_files_go_on(own):
    sandbox = own(envs={"COLOUR": "green"})
    pid = counting(sandbox)
    sandbox.files.write("/home/user/kept", "on disk")
    before = count(sandbox.sandbox_id)
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id, timeout=120)
    assert count(sandbox.sandbox_id) > before
    assert again.files.read("/home/user/kept") == "on disk"
    assert any(process.pid == pid for process in again.commands.list())
    assert again.commands.run("echo $COLOUR").stdout == "green\n"
    clock = float(again.commands.run("date +%s").stdout)
    assert abs(clock - time.time()) < 30
    again.commands.kill(pid)


def test_cp_030_the_token_is_the_same(own):
    sandbox = own()
    before = detail(sandbox.sandbox_id)["envdAccessToken"]
    sandbox.pause()
    assert detail(sandbox.sandbox_id)["envdAccessToken"] == before
    Sandbox.connect(sandbox.sandbox_id)
    assert detail(sandbox.sandbox_id)["envdAccessToken"] == before


def test_cp_069_what_is_paused_is_not_paused_again(own):
    sandbox = own()
    sandbox.pause()
    assert sandbox.pause() is False, "it is so already"
    answer = post(f"/sandboxes/{sandbox.sandbox_id}/pause")
    assert answer.status == 409 and "is already paused" in answer.text
    assert post(f"/sandboxes/{UNKNOWN}/pause").status == 404
    sandbox.kill()
    assert post(f"/sandboxes/{sandbox.sandbox_id}/pause").status == 404


def test_cp_070_pauses_join(own):
    sandbox = own()
    # Memory makes a pause last, so that all requests are there before it is done; who comes later finds it paused (cp_069).
    sandbox.commands.run("python3 -c 'import os, time; kept = os.urandom(200 << 20); time.sleep(300)'", background=True, timeout=0)
    time.sleep(2)
    at = urlsplit(os.environ["E2B_API_URL"])
    connections = [http.client.HTTPConnection(at.hostname, at.port, timeout=60) for _ in range(5)]
    for connection in connections:
        connection.connect()
    for connection in connections:
        headers = {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}
        connection.request("POST", f"{at.path}/sandboxes/{sandbox.sandbox_id}/pause", b"{}", headers)
    answers = [(answer.status, answer.read()) for answer in map(http.client.HTTPConnection.getresponse, connections)]
    for connection in connections:
        connection.close()
    assert answers == [(204, b"")] * 5
    assert detail(sandbox.sandbox_id)["state"] == "paused"
    assert Sandbox.connect(sandbox.sandbox_id, timeout=60).is_running()


def test_cp_071_without_memory_it_boots_from_disk(own):
    sandbox = own()
    pid = counting(sandbox)
    sandbox.files.write("/home/user/kept", "on disk")
    assert post(f"/sandboxes/{sandbox.sandbox_id}/pause", {"memory": False}).status == 204
    assert detail(sandbox.sandbox_id)["pauseMode"] == "filesystem"
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("/home/user/kept") == "on disk"
    assert all(process.pid != pid for process in again.commands.list())
    assert through_ingress(sandbox.sandbox_id, 8000).status == 502


def test_cp_072_resume_is_for_paused_ones(own):
    sandbox = own()
    resume = f"/sandboxes/{sandbox.sandbox_id}/resume"
    assert "is already running" in post(resume).text
    sandbox.pause()
    answer = post(resume, {"timeout": 60})
    assert answer.status == 201 and json.loads(answer.body)["sandboxID"] == sandbox.sandbox_id
    assert post(resume).status == 409
    answer = post(f"/sandboxes/{UNKNOWN}/resume")
    assert answer.status == 404 and "doesn't exist or you don't have access to it" in answer.text


def test_cp_073_resumes_at_once_make_one_sandbox(own):
    sandbox = own()
    counting(sandbox)
    sandbox.pause()
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: post(f"/sandboxes/{sandbox.sandbox_id}/resume", {"timeout": 60}), range(5)))
    assert {answer.status for answer in answers} <= {201, 409}, answers
    assert count(sandbox.sandbox_id) > 0


def test_cp_040_a_paused_one_is_killed(own):
    sandbox = own(metadata={"mark": "cp040"})
    sandbox.pause()
    assert sandbox.kill() is True
    assert listed([SandboxState.PAUSED], "cp040") == []
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def test_cp_041_a_resumed_one_is_killed_with_all_it_had(own):
    sandbox = own(metadata={"mark": "cp041"})
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id)
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert listed([SandboxState.PAUSED, SandboxState.RUNNING], "cp041") == []


def test_cp_079_five_rounds_keep_everything(own):
    sandbox = own()
    counting(sandbox)
    seen = [count(sandbox.sandbox_id)]
    for number in range(5):
        sandbox.files.write(f"/home/user/{number}", str(number))
        sandbox.pause()
        sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=120)
        seen.append(count(sandbox.sandbox_id))
        assert [sandbox.files.read(f"/home/user/{it}") for it in range(number + 1)] == [str(it) for it in range(number + 1)]
    assert seen == sorted(set(seen))


def test_cp_067_a_timeout_can_pause(own):
    sandbox = own(timeout=3, lifecycle={"on_timeout": "pause"})
    counting(sandbox)
    sandbox.files.write("/home/user/kept", "on disk")
    wait_for("paused", sandbox.sandbox_id)
    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert again.files.read("/home/user/kept") == "on disk"
    assert count(sandbox.sandbox_id) > 0


def test_cp_035_the_lifecycle_is_shown(own):
    sandbox = own(lifecycle={"on_timeout": "pause", "auto_resume": True})
    assert detail(sandbox.sandbox_id)["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}


def test_cp_060_no_time_left_is_a_pause(own):
    sandbox = own(lifecycle={"on_timeout": "pause"})
    sandbox.set_timeout(0)
    wait_for("paused", sandbox.sandbox_id)


def test_cp_080_auto_pause_survives_a_resume(own):
    sandbox = own(lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id, timeout=60).set_timeout(0)
    wait_for("paused", sandbox.sandbox_id)
    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert detail(sandbox.sandbox_id)["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    again.set_timeout(0)
    wait_for("paused", sandbox.sandbox_id)


def test_cp_109_traffic_resumes(own):
    sandbox = own(lifecycle={"on_timeout": "pause", "auto_resume": True})
    counting(sandbox)
    sandbox.pause()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: through_ingress(sandbox.sandbox_id, 8000), range(8)))
    assert {answer.status for answer in answers} == {200}, answers
    info = sandbox.get_info()
    assert info.state == SandboxState.RUNNING
    left = info.end_at - datetime.now(timezone.utc)
    assert timedelta(seconds=240) < left <= timedelta(seconds=301)
    sandbox.pause()
    assert sandbox.files.exists("/tmp/counter.py"), "a request to the daemon with its token resumes too"


def test_cp_110_it_then_lives_as_long_as_its_create_said(own):
    sandbox = own(timeout=420, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.set_timeout(600)
    sandbox.pause()
    assert sandbox.files.exists("/etc/hostname")
    left = sandbox.get_info().end_at - datetime.now(timezone.utc)
    assert timedelta(seconds=360) < left <= timedelta(seconds=421)


def test_cp_111_what_does_not_want_it_is_left_alone(own):
    for options in ({}, {"lifecycle": {"on_timeout": "pause"}}):
        sandbox = own(**options)
        sandbox.pause()
        answer = through_ingress(sandbox.sandbox_id, 8000)
        assert answer.status == 502 and "was not found" in answer.text
        assert detail(sandbox.sandbox_id)["state"] == "paused"


def test_cp_112_without_the_token_nothing_is_resumed(own):
    sandbox = own(lifecycle={"on_timeout": "pause", "auto_resume": True}, network={"allow_public_traffic": False})
    sandbox.pause()
    answer = through_ingress(sandbox.sandbox_id, 8000)
    assert answer.status == 403
    answer = through_ingress(sandbox.sandbox_id, 49983, "/files?path=/etc/hostname&username=user")
    assert answer.status == 403 and "can't be resumed" in answer.text
    assert detail(sandbox.sandbox_id)["state"] == "paused"


def test_a_stream_ends_when_its_sandbox_is_paused(own):
    sandbox = own()
    handle = sandbox.commands.run("sleep 300", background=True, timeout=0)
    sandbox.pause()
    began = time.monotonic()
    with pytest.raises(SandboxException):
        handle.wait()
    assert time.monotonic() - began < 20


def test_cp_085_a_snapshot_has_an_id_and_names(own):
    sandbox = own()
    template, tag = sandbox.create_snapshot().snapshot_id.split(":")
    assert len(template) == 20 and tag == "default"
    name = f"snap{os.getpid()}"
    named = sandbox.create_snapshot(name=f"{name}:v1")
    assert named.snapshot_id.endswith(f"/{name}:v1") and named.names[0].endswith(f"/{name}")
    for each in (template, name):
        assert api("DELETE", f"/templates/{each}").status == 204


def test_a_snapshot_is_deleted_by_what_it_is_called(own):
    sandbox, name = own(), f"called{os.getpid()}"
    unnamed, first = sandbox.create_snapshot(), sandbox.create_snapshot(name=f"{name}:v1")
    assert Sandbox.delete_snapshot(unnamed.snapshot_id) is True
    assert Sandbox.delete_snapshot(unnamed.snapshot_id) is False
    second = sandbox.create_snapshot(name=f"{name}:v2")
    # It is not all that the name stands for.
    with pytest.raises(SandboxException, match="tag"):
        Sandbox.delete_snapshot(first.snapshot_id)
    kept = [item.snapshot_id for item in Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id).next_items()]
    assert kept == [second.snapshot_id, first.snapshot_id]
    assert Sandbox.delete_snapshot(name) is True
    only = sandbox.create_snapshot(name=f"{name}:v1")
    assert Sandbox.delete_snapshot(only.snapshot_id) is True


def test_cp_086_a_sandbox_goes_on_from_a_snapshot(own):
    sandbox = own()
    counting(sandbox)
    made = sandbox.create_snapshot()
    before = count(sandbox.sandbox_id)
    with Sandbox.create(made.snapshot_id, timeout=120) as child:
        assert child.sandbox_id != sandbox.sandbox_id
        assert count(child.sandbox_id) > 0
        assert count(sandbox.sandbox_id) > before, "the first one goes on"
        child.files.write("/home/user/child", "own")
        assert not sandbox.files.exists("/home/user/child")
    assert api("DELETE", f"/templates/{made.snapshot_id.split(':')[0]}").status == 204


def test_cp_088_snapshots_are_listed(own):
    sandbox, name = own(), f"list{os.getpid()}"
    made, named = sandbox.create_snapshot(), sandbox.create_snapshot(name=f"{name}:v1")
    mine = json.loads(api("GET", f"/snapshots?sandboxID={sandbox.sandbox_id}").body)
    assert [item["snapshotID"] for item in mine] == [named.snapshot_id, made.snapshot_id]
    assert json.loads(api("GET", f"/snapshots?name={name}:v1").body)[0]["snapshotID"] == named.snapshot_id
    assert json.loads(api("GET", "/snapshots?name=unknown-to-all").body) == []
    for each in (made.snapshot_id.split(":")[0], name):
        assert api("DELETE", f"/templates/{each}").status == 204


def test_cp_089_a_snapshot_that_is_used_is_not_deleted(own):
    template = own().create_snapshot().snapshot_id.split(":")[0]
    with Sandbox.create(template, timeout=120):
        refused = api("DELETE", f"/templates/{template}")
        assert refused.status == 400 and "running sandboxes" in refused.text
    assert api("DELETE", f"/templates/{template}").status == 204
    assert api("DELETE", f"/templates/{template}").status == 404


def test_cp_091_bad_snapshots_are_refused(own):
    assert post(f"/sandboxes/{UNKNOWN}/snapshots").status == 404
    assert post(f"/sandboxes/{own().sandbox_id}/snapshots", {"name": "others/name"}).status == 400


def test_cp_081_forks_go_on_apart(own):
    sandbox = own()
    counting(sandbox)
    sandbox.files.write("/home/user/shared", "before")
    before = count(sandbox.sandbox_id)
    end = detail(sandbox.sandbox_id)["endAt"]
    forks = sandbox.fork(count=3, timeout=120)
    try:
        assert len({fork.sandbox_id for fork in forks} | {sandbox.sandbox_id}) == 4
        for fork in forks:
            assert count(fork.sandbox_id) >= before
            assert fork.files.read("/home/user/shared") == "before"
            fork.files.write("/home/user/own", fork.sandbox_id)
        assert [fork.files.read("/home/user/own") for fork in forks] == [fork.sandbox_id for fork in forks]
        assert not sandbox.files.exists("/home/user/own")
        assert detail(sandbox.sandbox_id)["endAt"] == end
    finally:
        for fork in forks:
            fork.kill()


def test_cp_082_forks_are_counted(own):
    fork = f"/sandboxes/{own().sandbox_id}/fork"
    for bad in (0, 101):
        assert post(fork, {"count": bad}).status == 400


def test_cp_083_only_what_runs_is_forked(own):
    sandbox = own()
    fork = f"/sandboxes/{sandbox.sandbox_id}/fork"
    sandbox.pause()
    answer = post(fork)
    assert answer.status == 409 and "is paused and cannot be forked" in answer.text
    assert post(f"/sandboxes/{UNKNOWN}/fork").status == 404


def test_cp_157_every_call_by_its_name(own):
    sandbox = own()
    counting(sandbox)
    assert Sandbox.connect(sandbox.sandbox_id, timeout=120).is_running()
    listed_ids = [item.sandbox_id for item in Sandbox.list().next_items()]
    assert sandbox.sandbox_id in listed_ids
    sandbox.set_timeout(300)
    left = sandbox.get_info().end_at - datetime.now(timezone.utc)
    assert timedelta(seconds=240) < left <= timedelta(seconds=301)
    assert sandbox.get_host(8000).startswith(f"8000-{sandbox.sandbox_id}.")
    end = time.monotonic() + 20
    while not (points := sandbox.get_metrics()):
        assert time.monotonic() < end, "no metrics within 20 s"
        time.sleep(0.5)
    assert points[-1].mem_used > 0
    before = count(sandbox.sandbox_id)
    made = sandbox.create_snapshot()
    others = [Sandbox.create(made.snapshot_id, timeout=60), *sandbox.fork(count=1, timeout=60)]
    assert all(count(other.sandbox_id) >= before for other in others)
    assert all(other.kill() for other in others)
    assert Sandbox.delete_snapshot(made.snapshot_id) is True
    assert sandbox.pause() is True
    assert Sandbox.connect(sandbox.sandbox_id, timeout=120).sandbox_id == sandbox.sandbox_id
    assert count(sandbox.sandbox_id) > before
    assert sandbox.kill() is True


def test_asynchronously_too():
    async def rounds():
        sandbox = await AsyncSandbox.create(TEMPLATE, timeout=120)
        try:
            await sandbox.files.write("/home/user/kept", "on disk")
            assert await sandbox.pause() is True
            again = await AsyncSandbox.connect(sandbox.sandbox_id, timeout=120)
            assert await again.files.read("/home/user/kept") == "on disk"
            forks = await again.fork(count=1, timeout=60)
            assert await forks[0].files.read("/home/user/kept") == "on disk"
            await forks[0].kill()
        finally:
            await sandbox.kill()

    asyncio.run(rounds())


def test_cp_033_a_file_system_pause_by_itself():
    body = {"templateID": TEMPLATE, "timeout": 60, "autoPause": True, "autoPauseMemory": False}
    answer = post("/v2/sandboxes", body)
    assert answer.status == 201
    sandbox_id = json.loads(answer.body)["sandboxID"]
    assert post(f"/sandboxes/{sandbox_id}/timeout", {"timeout": 0}).status == 204
    wait_for("paused", sandbox_id)
    end = time.monotonic() + 30
    while "pauseMode" not in detail(sandbox_id):
        assert time.monotonic() < end, "the pause does not come to its end"
        time.sleep(0.1)
    assert detail(sandbox_id)["pauseMode"] == "filesystem"
    assert api("DELETE", f"/sandboxes/{sandbox_id}").status == 204


def test_cp_050_lists_by_state(own):
    running, paused = own(metadata={"mark": "cp050"}), own(metadata={"mark": "cp050"})
    paused.pause()
    query = "/v2/sandboxes?metadata=mark%3Dcp050&state="
    only = api("GET", query + "paused")
    assert [item["sandboxID"] for item in json.loads(only.body)] == [paused.sandbox_id]
    assert "x-total-running" not in only.headers
    both = api("GET", query + "running,paused")
    assert {item["sandboxID"] for item in json.loads(both.body)} == {running.sandbox_id, paused.sandbox_id}
    assert both.headers["x-total-running"] == "1"


def test_a_resume_for_no_time_is_answered_and_ends_then(own):
    # The host used to end it in the middle of its initialisation, one time in five, and the caller heard 500.
    for memory in [True, False] * 5:
        sandbox = own()
        sandbox.pause(keep_memory=memory)
        body = {"timeout": 0, "memory": memory, "autoPause": False}
        assert post(f"/sandboxes/{sandbox.sandbox_id}/resume", body).status == 201
        end = time.monotonic() + 10
        while api("GET", f"/sandboxes/{sandbox.sandbox_id}").status != 404:
            assert time.monotonic() < end, "it has not ended"
            time.sleep(0.1)


def test_cp_062_a_paused_one_has_no_timeout(own):
    sandbox = own()
    sandbox.pause()
    assert post(f"/sandboxes/{sandbox.sandbox_id}/timeout", {"timeout": 60}).status == 404


def test_cp_075_a_connect_only_extends(own):
    sandbox = own(timeout=60)
    connect = f"/v2/sandboxes/{sandbox.sandbox_id}/connect"
    assert post(connect, {"timeout": 600}).status == 200
    end = detail(sandbox.sandbox_id)["endAt"]
    assert post(connect, {"timeout": 30}).status == 200
    assert detail(sandbox.sandbox_id)["endAt"] == end


def test_cp_076_a_connect_resumes_with_memory(own):
    sandbox = own()
    counting(sandbox)
    sandbox.pause()
    answer = post(f"/v2/sandboxes/{sandbox.sandbox_id}/connect")
    assert answer.status == 201
    assert json.loads(answer.body)["envdAccessToken"] == detail(sandbox.sandbox_id)["envdAccessToken"]
    assert count(sandbox.sandbox_id) > 0


def test_cp_077_connects_that_cannot_be():
    for path, body, status in [
        (f"/sandboxes/{UNKNOWN}/connect", {"timeout": 10**6}, 400),
        (f"/sandboxes/{UNKNOWN}/connect", {}, 400),
        (f"/sandboxes/{UNKNOWN}/connect", {"timeout": 60}, 404),
        (f"/v2/sandboxes/{UNKNOWN}/connect", {}, 404),
    ]:
        assert post(path, body).status == status, (path, body)


def test_cp_078_connects_at_once_are_usable_at_once(own):
    sandbox = own()
    sandbox.pause()

    def connect(_) -> str:
        return Sandbox.connect(sandbox.sandbox_id, timeout=60).commands.run("echo usable").stdout

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(connect, range(5))) == ["usable\n"] * 5


def test_cp_087_a_name_is_given_anew(own):
    sandbox, name = own(), f"again{os.getpid()}"
    for content in ("first", "second"):
        sandbox.files.write("/home/user/content", content)
        sandbox.create_snapshot(name=name)
        with Sandbox.create(name, timeout=60) as child:
            assert child.files.read("/home/user/content") == content
    assert api("DELETE", f"/templates/{name}").status == 204


def test_cp_090_one_snapshot_at_a_time(own):
    sandbox = own()
    snapshots = f"/sandboxes/{sandbox.sandbox_id}/snapshots"
    with ThreadPoolExecutor(5) as pool:
        made = [pool.submit(post, snapshots) for _ in range(4)]
        time.sleep(0.02)
        paused = pool.submit(post, f"/sandboxes/{sandbox.sandbox_id}/pause")
        answers = [each.result() for each in made]
    assert {answer.status for answer in answers} <= {201, 409} and any(answer.status == 201 for answer in answers), answers
    assert paused.result().status == 204
    for answer in answers:
        if answer.status == 201:
            template = json.loads(answer.body)["snapshotID"].split(":")[0]
            assert api("DELETE", f"/templates/{template}").status == 204


def test_cp_090_a_kill_and_a_resume_meanwhile(own):
    sandbox = own()
    path = f"/sandboxes/{sandbox.sandbox_id}"
    # Long enough a save for the others to come in time.
    sandbox.commands.run("exec python3 -c 'import os, time; heap = os.urandom(100 << 20); time.sleep(600)'", background=True, timeout=0)
    time.sleep(1)
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(post, f"{path}/snapshots")
        time.sleep(0.1)
        resumed = post(f"{path}/resume")
        killed = api("DELETE", path)
        answer = made.result()
    assert resumed.status == 409 and "is already running" in resumed.text
    assert killed.status == 204
    assert api("GET", path).status == 404
    # It was whole by then, or it is not there.
    assert answer.status in (201, 404, 409), answer
    if answer.status == 201:
        template = json.loads(answer.body)["snapshotID"].split(":")[0]
        assert api("DELETE", f"/templates/{template}").status == 204


def test_cp_137_what_a_paused_sandbox_is_of_is_not_deleted(own):
    template = own().create_snapshot().snapshot_id.split(":")[0]
    sandbox = Sandbox.create(template, timeout=120)
    sandbox.pause()
    refused = api("DELETE", f"/templates/{template}")
    assert refused.status == 400 and "paused sandboxes" in refused.text, refused
    sandbox.kill()
    assert api("DELETE", f"/templates/{template}").status == 204


def test_cp_099_where_it_may_connect_to_is_kept(own):
    sandbox = own(allow_internet_access=False)
    sandbox.pause()
    assert detail(sandbox.sandbox_id)["allowInternetAccess"] is False
    assert api("PUT", f"/sandboxes/{sandbox.sandbox_id}/network", b"{}").status == 409
    again = Sandbox.connect(sandbox.sandbox_id)
    assert detail(sandbox.sandbox_id)["allowInternetAccess"] is False
    blocked = again.commands.run("timeout 5 bash -c 'exec 3<>/dev/tcp/1.1.1.1/80'; echo $?").stdout
    assert blocked.strip() != "0"


def test_envd_029_paused_is_not_running(own):
    sandbox = own()
    assert sandbox.is_running()
    sandbox.pause()
    assert not sandbox.is_running()
    assert Sandbox.connect(sandbox.sandbox_id).is_running()


def test_envd_153_what_a_pause_keeps(own):
    sandbox = own(envs={"COLOUR": "green"})
    pid = counting(sandbox)
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert any(process.pid == pid for process in again.commands.list())
    assert again.commands.run("echo $COLOUR; whoami").stdout == "green\nuser\n"
    assert post(f"/sandboxes/{sandbox.sandbox_id}/pause", {"memory": False}).status == 204
    booted = Sandbox.connect(sandbox.sandbox_id)
    assert all(process.pid != pid for process in booted.commands.list())
    assert booted.commands.run("whoami").stdout == "user\n"


def test_sdk_02_a_connect_to_a_paused_one_is_201(own):
    sandbox = own()
    sandbox.pause()
    assert api("POST", f"/v2/sandboxes/{sandbox.sandbox_id}/connect").status == 201
    assert api("POST", f"/v2/sandboxes/{sandbox.sandbox_id}/connect").status == 200


def test_sdk_11_the_mode_of_a_pause(own):
    sandbox = own()
    sandbox.pause()
    assert sandbox.get_info().state == SandboxState.PAUSED, "the package understands the answer"
    assert detail(sandbox.sandbox_id)["pauseMode"] == "full"


def test_sdk_12_a_fork_needs_no_arguments(own):
    sandbox = own()
    (fork,) = sandbox.fork()
    assert fork.commands.run("echo fork").stdout == "fork\n"
    fork.kill()
    if not OLD:
        with pytest.raises(InvalidArgumentException):
            sandbox.fork(count=21)
    assert post(f"/sandboxes/{sandbox.sandbox_id}/fork", {"count": 101}).status == 400


def heavy(sandbox: Sandbox) -> None:
    """So much memory that a pause takes a while."""
    hold = "import os, time; held = os.urandom(1 << 20) * 250; open('/tmp/held', 'w').close(); time.sleep(600)"
    sandbox.commands.run(f'exec python3 -c "{hold}"', background=True, timeout=0)
    end = time.monotonic() + 60
    while not sandbox.files.exists("/tmp/held"):
        assert time.monotonic() < end
        time.sleep(0.1)


def while_pausing(sandbox: Sandbox, seen):
    """What `seen` says until the pause is over, first the last time before that."""
    with ThreadPoolExecutor(1) as pool:
        pause = pool.submit(post, f"/sandboxes/{sandbox.sandbox_id}/pause")
        found = []
        while not pause.done():
            answer = seen()
            # One that was under way at the end says nothing of the time before it.
            if not pause.done():
                found.append(answer)
        assert pause.result().status == 204
    return found


def test_cp_057_one_that_is_being_paused_is_listed_as_paused(own):
    mark = f"cp057-{time.time_ns()}"
    sandbox = own(metadata={"mark": mark})
    heavy(sandbox)
    found = while_pausing(sandbox, lambda: (listed([SandboxState.PAUSED], mark), listed([SandboxState.RUNNING], mark)))
    assert ([sandbox.sandbox_id], []) in found, found
    assert listed([SandboxState.PAUSED], mark) == [sandbox.sandbox_id]


def test_cp_063_one_that_is_being_paused_has_no_timeout(own):
    sandbox = own()
    heavy(sandbox)
    statuses = while_pausing(sandbox, lambda: post(f"/sandboxes/{sandbox.sandbox_id}/timeout", {"timeout": 60}).status)
    # Before the pause is decided, its deadline moves.
    assert set(statuses) <= {204, 409, 404} and {409, 404} & set(statuses), statuses
    assert post(f"/sandboxes/{sandbox.sandbox_id}/timeout", {"timeout": 60}).status == 404


def test_a_resume_may_change_what_the_deadline_does(own):
    sandbox = own(lifecycle={"on_timeout": "pause"})
    path = f"/sandboxes/{sandbox.sandbox_id}/resume"
    sandbox.pause()
    assert post(path, {"timeout": 60, "autoPause": "no"}).status == 400
    assert post(path, {"timeout": 60, "autoPause": False}).status == 201
    assert detail(sandbox.sandbox_id)["lifecycle"]["onTimeout"] == "kill"
    sandbox.pause()
    assert post(path, {"timeout": 60, "autoPause": True}).status == 201
    sandbox.set_timeout(0)
    wait_for("paused", sandbox.sandbox_id)
    assert post(path, {"timeout": 60, "autoPause": False}).status == 201
    sandbox.set_timeout(0)
    end = time.monotonic() + 20
    while api("GET", f"/sandboxes/{sandbox.sandbox_id}").status != 404:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_boot_from_disk_has_the_variables_of_its_create(own):
    sandbox = own(envs={"COLOUR": "green", "QUOTED": "a b\n'c'"})
    sandbox.pause(**({"keep_memory": False} if OLD else {"mode": "filesystem"}))
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.commands.run('echo -n "$COLOUR $QUOTED $E2B_SANDBOX_ID"').stdout == f"green a b\n'c' {sandbox.sandbox_id}"
    kept = again.commands.run("cat /var/lib/soulbox/environment.json", user="root").stdout
    assert json.loads(kept) == {"COLOUR": "green", "QUOTED": "a b\n'c'"}
    assert again.commands.run("stat -c %a:%U /var/lib/soulbox/environment.json").stdout == "600:root\n"


def test_a_signed_url_resumes(own):
    """One that envd would refuse does not."""
    sandbox = own(lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.files.write("/home/user/file", "kept")
    good, old = sandbox.download_url("/home/user/file"), sandbox.download_url("/home/user/file", use_signature_expiration=1)
    time.sleep(2.1)
    sandbox.pause()
    for bad in (old, good.replace("file", "other"), good.replace("signature=v1_", "signature=v1_x")):
        answer = request("GET", bad)
        assert 400 <= answer.status < 500, answer
        assert detail(sandbox.sandbox_id)["state"] == "paused"
    answer = request("GET", good)
    assert (answer.status, answer.text) == (200, "kept"), answer
    assert detail(sandbox.sandbox_id)["state"] == "running"
    sandbox.pause()
    # With the sandbox named, as by a host of its own.
    path = good[good.index("/files?") :]
    assert through_ingress(sandbox.sandbox_id, 49983, path.replace("file&", "other&")).status == 403
    assert through_ingress(sandbox.sandbox_id, 49983, path).text == "kept"
    asleep = own()
    asleep.files.write("/home/user/file", "kept")
    url = asleep.download_url("/home/user/file")
    asleep.pause()
    assert request("GET", url).status in (401, 403, 404, 502), "it does not want to be resumed by traffic"
    assert detail(asleep.sandbox_id)["state"] == "paused"


def test_what_cannot_be_saved_is_named_and_goes_on(own):
    sandbox = own()
    pid = counting(sandbox)
    trace = (
        "import ctypes, os, signal, time\n"
        "if (child := os.fork()) == 0:\n"
        "    ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.execvp('sleep', ['sleep', '300'])\n"
        "os.waitpid(child, 0); ctypes.CDLL(None).ptrace(7, child, 0, 0)\n"
        "print(child, flush=True); time.sleep(300)\n"
    )
    sandbox.files.write("/tmp/trace.py", trace)
    said: list[str] = []
    tracer = sandbox.commands.run("exec python3 /tmp/trace.py", background=True, timeout=0, on_stdout=said.append)
    sandbox.commands.run("until pgrep -x sleep; do sleep 0.05; done; sleep 0.3")
    traced = sandbox.commands.run("pgrep -x sleep").stdout.strip()
    for path, body in [("pause", {}), ("snapshots", {}), ("fork", {})]:
        answer = post(f"/sandboxes/{sandbox.sandbox_id}/{path}", body)
        assert answer.status == 503, answer
        assert f"process {traced} (sleep) is being traced" in answer.text, answer.text
    before = count(sandbox.sandbox_id)
    assert count(sandbox.sandbox_id) >= before and detail(sandbox.sandbox_id)["state"] == "running"
    sandbox.commands.kill(tracer.pid)
    sandbox.commands.run("pkill -x sleep || true")
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id)
    assert pid in [process.pid for process in sandbox.commands.list()]


def test_what_could_not_be_saved_is_not_let_in(own):
    """Nested namespaces, FUSE and a second overlay: no program can make them, so none keeps a pause from being."""
    sandbox = own()
    for command in (
        "unshare --user true",
        "unshare --mount true",
        "mkdir -p /tmp/a /tmp/b /tmp/c /tmp/d && mount -t overlay x -o lowerdir=/tmp/a,upperdir=/tmp/b,workdir=/tmp/c /tmp/d",
        "mount -t fuse x /tmp/d -o fd=3,rootmode=40000,user_id=0,group_id=0 3<> /dev/null",
        "test -e /dev/fuse",
    ):
        for user in ("user", "root"):
            with pytest.raises(CommandExitException):
                sandbox.commands.run(command, user=user)
    sandbox.pause()
    assert Sandbox.connect(sandbox.sandbox_id).is_running()
