"""The checks of the command line's list that are about builds: uploads, steps, contexts, the cache, logs, images.

Most look at one build, which is made once. Every name is of one run of the tests, and deleted after it.
"""

import gzip
import io
import json
import os
import tarfile
import time
import traceback
import uuid
from datetime import datetime
from pathlib import Path

import pytest
from conftest import api, request
from e2b import Sandbox, Template
from test_builds import alone, build, fails, inside  # noqa: F401  fixtures

RUN = uuid.uuid4().hex
pytestmark = pytest.mark.usefixtures("alone")
BASE = "e2bdev/base"


def asked(name: str, status: int = 202, **more) -> dict:
    answer = api("POST", "/v3/templates", json.dumps({"name": name} | more).encode())
    assert answer.status == status, answer.text
    return json.loads(answer.body)


class Raw:
    """A build by plain requests, for what no builder sends."""

    def __init__(self, **more) -> None:
        self.name = f"r-{uuid.uuid4().hex[:12]}"
        made = asked(self.name, **more)
        self.template, self.build = made["templateID"], made["buildID"]

    def upload(self, archive: bytes) -> str:
        files_hash = uuid.uuid4().hex * 2
        link = json.loads(api("GET", f"/templates/{self.template}/files/{files_hash}").body)
        answer = request("PUT", link["url"], {}, archive)
        assert answer.status in (200, 201), answer.text
        return files_hash

    def start(self, steps: list[dict], **more) -> int:
        body = {"fromImage": BASE, "steps": steps} | more
        path = f"/v2/templates/{self.template}/builds/{self.build}"
        return api("POST", path, json.dumps(body).encode()).status

    def status(self, query: str = "") -> dict:
        answer = api("GET", f"/templates/{self.template}/builds/{self.build}/status{query}")
        assert answer.status == 200, answer.text
        return json.loads(answer.body)

    def ended(self, within: float = 90) -> dict:
        deadline = time.monotonic() + within
        while (state := self.status())["status"] not in ("ready", "error"):
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        return state

    def logs(self, query: str) -> list[dict]:
        answer = api("GET", f"/templates/{self.template}/builds/{self.build}/logs{query}")
        assert answer.status == 200, answer.text
        return json.loads(answer.body)["logs"]


@pytest.fixture
def raw():
    made = []

    def make(**more) -> Raw:
        made.append(Raw(**more))
        return made[-1]

    yield make
    for one in made:
        api("DELETE", f"/templates/{one.name}")


def step(kind: str, *args: str, **more) -> dict:
    return {"type": kind, "args": list(args), "force": False} | more


def archive(entries: dict[str, bytes | str], packed: bool = True, **how) -> bytes:
    """A tar file; a text is the target of a hard link, or of a symbolic one after `@`."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **how) as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                entry.type = tarfile.SYMTYPE if content.startswith("@") else tarfile.LNKTYPE
                entry.linkname = content.removeprefix("@")
                tar.addfile(entry)
    return gzip.compress(made.getvalue()) if packed else made.getvalue()


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """One build with a little of everything, and a sandbox of it."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "tree/sub").mkdir(parents=True)
    (folder / "tree/.dot").write_text("dot")
    (folder / "tree/sub/deep").write_text("deep")
    (folder / "tree/relative").symlink_to(".dot")
    (folder / "tree/absolute").symlink_to("/etc/hostname")
    (folder / "followed").mkdir()
    (folder / "followed/link").symlink_to("../one")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "one").write_text("one")
    lines = []
    name = f"tour-{uuid.uuid4().hex[:12]}"
    begun = Template(file_context_path=str(folder)).from_image(BASE).set_envs({"RUN_OF_TESTS": RUN})
    steps = (
        begun.run_cmd("id -un > ~/who; pwd > ~/where; sudo id -un > ~/sudo; mkdir ~/merged; echo kept > ~/merged/kept")
        .run_cmd("id -un > /root/who; cp /root/who /who-root; chmod 644 /who-root", user="root")
        .run_cmd("id -un > ~/who-after")
        .copy("tree", "merged")
        .copy("one", "folder/")
        .copy("one", "merged")
        .copy("one", "renamed")
        .copy("tree", "/opt/modes", user="root", mode=0o755)
        .copy("dangling", "dangling")
        .copy("followed", "followed", resolve_symlinks=True)
        .set_envs({"PLACES": "$PATH:/x", "LITERAL": "$(id)"})
        .run_cmd('echo "$PLACES" > ~/places; echo "$LITERAL" > ~/literal')
        .set_workdir("/srv/app")
        .copy("one", "after-workdir")
        .set_user("worker")
        .run_cmd("id -un > /tmp/worker; pwd > /tmp/workdir")
        .set_start_cmd('echo "started $LITERAL" > /tmp/started; sleep 1000', "test -s /tmp/started")
    )
    Template.build(steps, name, on_build_logs=lambda entry: lines.append(entry.message))
    with Sandbox.create(name, timeout=300) as sandbox:
        yield sandbox, lines
    api("DELETE", f"/templates/{name}")


def seen(tour, command: str) -> str:
    return tour[0].commands.run(command, user="root").stdout.strip()


def test_cli_052_a_build_starts_once(raw):
    one = raw()
    assert one.start([]) == 202
    assert one.start([]) == 400
    assert one.ended()["status"] == "ready"


def test_cli_057_a_new_default_changes_no_tag(build):
    name = f"b-{uuid.uuid4().hex[:12]}"
    build(lambda t: t.run_cmd("echo first > ~/which"), name, tags=["v1"])
    build(lambda t: t.run_cmd("echo second > ~/which"), name)
    assert (inside(f"{name}:v1", "cat ~/which"), inside(name, "cat ~/which")) == ("first", "second")


def test_cli_060_free_disk(raw):
    asked("x", 400, minFreeDiskMb=-1)
    one = raw(minFreeDiskMb=2048)
    assert one.start([]) == 202 and one.ended()["status"] == "ready"
    with Sandbox.create(one.name, timeout=60) as sandbox:
        shown = json.loads(api("GET", f"/sandboxes/{sandbox.sandbox_id}").body)
        assert shown["diskSizeMB"] >= 2048
        free = sandbox.commands.run("df --output=avail -B1M / | tail -1").stdout
        assert int(free) >= 1900, free
        sandbox.commands.run("head -c 1900M /dev/zero > ~/big && rm ~/big", timeout=120)
    assert raw(minFreeDiskMb=0).start([]) == 202


def test_cli_063_files_are_sent_once(build, tmp_path):
    (tmp_path / "f").write_text(uuid.uuid4().hex)
    name, first = build(lambda t: t.copy("f", "f"))
    _, again = build(lambda t: t.copy("f", "f"), name)
    _, forced = build(lambda t: t.copy("f", "f", force_upload=True), name)
    assert "Uploaded 'f'" in first and "Skipping upload of 'f', already cached" in again, (first, again)
    assert "Uploaded 'f'" in forced, forced


def test_cli_064_archives_of_each_form(raw):
    long = "sub/" + "ü" * 60 + "/" + "long" * 30
    one = raw()
    forms = [
        archive({"a": b"packed"}),
        archive({"b": b"plain"}, packed=False),
        archive({long: b"pax"}, format=tarfile.PAX_FORMAT),
    ]
    hashes = [one.upload(form) for form in forms]
    steps = [step("COPY", name, "/srv/", "", "", filesHash=it) for name, it in zip(("a", "b", "sub"), hashes)]
    assert one.start(steps) == 202
    assert one.ended()["status"] == "ready", one.status()
    shown = inside(one.name, f"cat /srv/a /srv/b '/srv/{long.removeprefix('sub/')}'")
    assert shown == "packedplainpax"


@pytest.mark.parametrize(
    "entries",
    [{"../x": b"up"}, {"x": "../../etc/shadow"}, {"d": "@/", "d/x": b"through a link"}],
    ids=["above", "hard link", "through a link"],
)
def test_cli_065_an_archive_that_leads_out(raw, entries):
    one = raw()
    files_hash = one.upload(archive(entries))
    assert one.start([step("COPY", "x", "/srv/", "", "", filesHash=files_hash)]) == 202
    state = one.ended()
    assert state["status"] == "error" and state["reason"]["step"] == "1", state


def test_cli_067_copies(tour):
    shown = seen(
        tour,
        "cd /home/user; cat merged/kept merged/.dot merged/sub/deep merged/one folder/one renamed; echo; "
        "readlink merged/relative merged/absolute dangling; "
        "stat -c '%U %a' /opt/modes /opt/modes/.dot /opt/modes/sub/deep renamed; stat -c %F followed/link",
    )
    assert shown.split("\n") == [
        "kept",
        "dotdeeponeoneone",
        ".dot",
        "/etc/hostname",
        "nowhere",
        "root 755",
        "root 755",
        "root 755",
        "user 644",
        "regular file",
    ]


def test_cli_068_relative_destinations(tour):
    assert seen(tour, "ls /home/user/renamed /srv/app/after-workdir") == "/home/user/renamed\n/srv/app/after-workdir"


def test_cli_069_who_runs_a_step(tour):
    shown = seen(tour, "cd /home/user; cat who where sudo; test -e .bashrc && echo bash")
    assert shown == "user\n/home/user\nroot\nbash"
    assert int(seen(tour, "id -u user")) >= 1000


def test_cli_070_a_user_for_one_step(tour, build):
    assert seen(tour, "cat /who-root /home/user/who-after") == "root\nuser"
    message = fails(build, lambda t: t.run_cmd("whoami", user="root123"))
    assert message.endswith("invalid username: 'root123'"), message


def test_cli_071_contexts_last(tour):
    assert seen(tour, "cat /tmp/worker /tmp/workdir") == "worker\n/srv/app"
    assert tour[0].commands.run('id -un; pwd; echo "[$LITERAL]"').stdout == "worker\n/srv/app\n[]\n"
    assert seen(tour, "cat /tmp/started") == "started $(id)"


def test_cli_072_values_are_expanded(tour):
    places = seen(tour, "cat /home/user/places")
    assert places.endswith(":/x") and "/usr/bin" in places
    assert seen(tour, "cat /home/user/literal") == "$(id)"


def test_cli_073_the_environment_of_an_image(raw):
    for image, names in (("node:20", "YARN_VERSION"), ("python:3.11", "LANG")):
        one = raw()
        assert one.start([step("RUN", f': {RUN}; echo "PATH=$PATH {names}=${names}"')], fromImage=image) == 202
        assert one.ended()["status"] == "ready", one.status()
        (said,) = [line["message"] for line in one.logs("?limit=100") if "[stdout]: " in line["message"]]
        known = {"YARN_VERSION": "1.22.19", "LANG": "C.UTF-8"}[names]
        assert "/usr/local/bin:" in said and said.endswith(f"{names}={known}"), said
        # What an image would start is not.
        assert inside(one.name, "pgrep -x 'node|python3' || echo nothing") == "nothing"


def commands_cached(lines: list[str]) -> list[bool]:
    return [line.startswith("CACHED ") for line in lines if "[builder " in line and (" RUN " in line or " COPY " in line)]


def test_cli_074_only_what_changed_is_made_anew(build):
    mark = uuid.uuid4().hex
    name, first = build(lambda t: t.run_cmd(f"true {mark}").run_cmd("true 2").run_cmd("true 3"))
    _, again = build(lambda t: t.run_cmd(f"true {mark}").run_cmd("true 2").run_cmd("true 3"), name)
    _, changed = build(lambda t: t.run_cmd(f"true {mark}").run_cmd("true two").run_cmd("true 3"), name)
    shown = [commands_cached(lines) for lines in (first, again, changed)]
    assert shown == [[False] * 3, [True] * 3, [True, False, False]]


def test_cli_075_skipping_the_cache(build):
    mark = uuid.uuid4().hex
    name, _ = build(lambda t: t.run_cmd(f"true {mark}").run_cmd("true 2"))
    _, middle = build(lambda t: t.run_cmd(f"true {mark}").skip_cache().run_cmd("true 2"), name)
    _, whole = build(lambda t: t.run_cmd(f"true {mark}").run_cmd("true 2"), name, skip_cache=True)
    assert [commands_cached(lines) for lines in (middle, whole)] == [[True, False], [False, False]]


def test_cli_076_a_byte_of_a_file(build, tmp_path):
    (tmp_path / "f").write_text(uuid.uuid4().hex)

    def steps(t):
        return t.run_cmd("true 1").copy("f", "f").run_cmd("true 2")

    name, _ = build(steps)
    (tmp_path / "f").write_text("another")
    _, lines = build(steps, name)
    assert commands_cached(lines) == [True, False, False], lines


def test_cli_077_from_a_template(build):
    first, _ = build(
        lambda t: t.set_envs({"HANDED": "down"}).set_workdir("/srv").run_cmd("sudo touch /srv/file")
        .set_start_cmd("sleep 1001", "pgrep -x sleep")
    )
    second, lines = build(lambda t: t.run_cmd('echo "$HANDED $(pwd)"'), base=first)
    assert any(line.endswith("[stdout]: down /srv") for line in lines), lines
    assert inside(second, "ls /srv; pgrep -fx 'sleep 1001' > /dev/null && echo runs") == "file\nruns"
    third, _ = build(lambda t: t.set_start_cmd("sleep 1002", "pgrep -x sleep"), base=first)
    assert inside(third, "pgrep -fx 'sleep 1002' > /dev/null && ! pgrep -fx 'sleep 1001' > /dev/null && echo other") == "other"
    assert "nothing-here" in fails(build, lambda t: t, base="nothing-here")
    message = fails(build, lambda t: t, base=f"{first}:v9")
    assert "tag 'v9' does not exist" in message, message


def test_cli_078_an_image_that_is_not_there(raw):
    one = raw()
    assert one.start([], fromImage="nobody/nothing:1") == 202
    state = one.ended()
    assert (state["status"], state["reason"]["step"]) == ("error", "base"), state
    assert "image 'nobody/nothing:1' not found" in state["reason"]["message"]


def test_cli_079_the_step_that_fails_is_named(raw):
    one = raw()
    assert one.start([step("RUN", "true"), step("ENV", "A", "1"), step("RUN", "exit 3"), step("RUN", "true")]) == 202
    state = one.ended()
    assert (state["status"], state["reason"]["step"]) == ("error", "3"), state


def test_cli_079_the_trace_leads_to_the_call(tmp_path):
    """Each call of the builder knows the line that it stands on, and each source of a copy is a step of its own."""
    (tmp_path / "file").write_text("file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("file")
    name = f"b-{uuid.uuid4().hex[:12]}"
    template = Template(file_context_path=str(tmp_path)).from_image(BASE).run_cmd("true")
    template.copy(["file", "folder"], "/srv/taken", user="root")  # the second source fails
    template.run_cmd("true")
    with pytest.raises(Exception) as raised:
        Template.build(template, name)
    api("DELETE", f"/templates/{name}")
    assert "failed to copy 'folder' to '/srv/taken'" in str(raised.value), raised.value
    lines = Path(__file__).read_text().splitlines()
    frames = traceback.extract_tb(raised.value.__traceback__)
    own = [lines[frame.lineno - 1] for frame in frames if frame.filename == __file__]
    assert any("the second source fails" in line for line in own), own


def test_cli_080_the_message_is_the_reasons(build, raw):
    one = raw()
    assert one.start([step("RUN", "exit 9")]) == 202
    reason = one.ended()["reason"]["message"]
    assert fails(build, lambda t: t.run_cmd("exit 9")) == reason


def test_cli_081_before_and_after_the_start(raw):
    one = raw()
    state = one.status()
    assert (state["status"], state["logEntries"]) == ("waiting", [])
    assert one.start([step("RUN", f"sleep 1 # {one.name}")]) == 202
    assert one.status()["status"] == "building"
    assert one.ended()["status"] == "ready"


def test_cli_082_pages_of_a_log(raw):
    one = raw()
    assert one.start([step("RUN", f"seq 130 # {one.name}")]) == 202
    one.ended()
    lines, pages = [], 0
    while page := one.status(f"?logsOffset={len(lines)}")["logEntries"]:
        assert len(page) <= 100
        lines, pages = lines + page, pages + 1
    assert pages >= 2 and sum("[stdout]: " in line["message"] for line in lines) == 130
    assert one.status(f"?logsOffset={len(lines) + 50}")["logEntries"] == []


def test_cli_083_levels(raw):
    one = raw()
    assert one.start([step("RUN", "true")], fromImage="ubuntu:22.04") == 202
    one.ended()
    warnings = one.status("?level=warn")["logEntries"]
    assert all(line["level"] in ("warn", "error") for line in warnings)
    assert len(one.status()["logEntries"]) > len(warnings)
    assert one.status("?limit=0")["logEntries"] == []


def test_cli_084_a_log_backwards(raw):
    one = raw()
    assert one.start([step("RUN", f"for it in $(seq 130); do echo $it; sleep 0.01; done # {one.name}")]) == 202
    one.ended()
    lines, cursor = [], int(time.time() * 1000) + 1000
    while page := one.logs(f"?direction=backward&cursor={cursor}"):
        times = [datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")) for line in page]
        assert times == sorted(times, reverse=True)
        before = len(lines)
        lines += [line for line in page if line not in lines]
        cursor = int(times[-1].timestamp() * 1000)
        if len(lines) == before:
            break
    assert any("Building template" in line["message"] for line in lines), lines[-3:]


def test_cli_085_a_ready_command_gates(build):
    from e2b import wait_for_file, wait_for_timeout

    name, lines = build(lambda t: t.set_start_cmd("sleep 1; touch /tmp/ready; sleep 1000", wait_for_file("/tmp/ready")))
    assert "Template is ready" in lines and inside(name, "ls /tmp/ready") == "/tmp/ready"
    build(lambda t: t.set_start_cmd("sleep 1000", wait_for_timeout(1000)))


def test_cli_085_each_helper_gates(build):
    from e2b import wait_for_port, wait_for_process, wait_for_url

    serve = "cd /tmp; sleep 1; touch came; exec python3 -m http.server 8131"
    for ready in (wait_for_port(8131), wait_for_url("http://localhost:8131/came"), wait_for_process("python3")):
        name, _ = build(lambda t: t.set_start_cmd(serve, ready))
        assert inside(name, "ls /tmp/came") == "/tmp/came"


def test_cli_086_a_start_command_that_dies(build):
    message = fails(build, lambda t: t.set_start_cmd("echo broken >&2; exit 5", "false"))
    assert "start command" in message.lower() and "exit status 5" in message, message


def test_cli_087_a_build_in_the_background(tmp_path):
    name = f"b-{uuid.uuid4().hex[:12]}"
    template = Template(file_context_path=str(tmp_path)).from_image(BASE).run_cmd(f"sleep 1 # {name}")
    begun = Template.build_in_background(template, name)
    assert Template.get_build_status(begun).status.value == "building"
    deadline = time.monotonic() + 60
    while (status := Template.get_build_status(begun).status.value) == "building":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    api("DELETE", f"/templates/{name}")
    assert status == "ready"


def test_cli_089_a_newer_build_takes_the_place(raw):
    one = raw()
    assert one.start([step("RUN", f"sleep 60 # {one.name}")]) == 202
    newer = asked(one.name)
    path = f"/v2/templates/{newer['templateID']}/builds/{newer['buildID']}"
    assert api("POST", path, json.dumps({"fromImage": BASE, "steps": []}).encode()).status == 202
    assert one.ended(within=30)["status"] == "error"


@pytest.mark.parametrize("image", ["debian:12", "debian:stable", "python:3.11", "node:20", BASE])
def test_cli_090_images_that_are_there(raw, image):
    one = raw()
    assert one.start([step("RUN", "true")], fromImage=image) == 202
    assert one.ended()["status"] == "ready", one.status()


def test_cli_091_an_image_that_is_only_near(raw):
    one = raw()
    assert one.start([], fromImage="ubuntu:22.04") == 202
    assert one.ended()["status"] == "ready"
    warnings = [line for line in one.status("?level=warn")["logEntries"] if line["level"] == "warn"]
    assert len(warnings) == 1 and "ubuntu:22.04" in warnings[0]["message"], warnings


def test_cli_092_helpers_that_install(build, tmp_path):
    """From this machine's own indexes, and from a folder, so that nothing else is needed."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/setup.py").write_text("from setuptools import setup; setup(name='own', version='1', py_modules=['own'])")
    (tmp_path / "package/own.py").write_text("value = 7")
    name, _ = build(
        lambda t: t.copy("package", "package")
        .run_cmd("git init -q -b main ~/origin && cd ~/origin && git -c user.name=a -c user.email=a@b.test commit -q --allow-empty -m one")
        .git_clone("/home/user/origin", "clone")
        .apt_install(["tree"])
        .npm_install("is-number@7", g=True)
        .pip_install("six")
        .set_workdir("/home/user/package")
        .pip_install(".")
    )
    seen = inside(name, "python3 -c 'import own, six; print(own.value)'; command -v tree; ls ~/clone/.git/HEAD; npm ls -g | grep -c is-number", timeout=60)
    assert seen == "7\n/usr/bin/tree\n/home/user/clone/.git/HEAD\n1", seen


def test_cli_094_what_base_has(tour):
    script = (
        "python3 --version; node -v; yarn -v; for it in git gh curl ss pgrep sudo; do command -v $it > /dev/null || echo missing $it; done; "
        "sudo -u user pip --version > /dev/null && pip --version > /dev/null && echo pip"
    )
    lines = seen(tour, script).split("\n")
    assert lines[0].startswith("Python 3.11.") and lines[1].startswith("v20.") and lines[2] == "1.22.19", lines
    assert lines[3:] == ["pip"], lines
