"""`soulbox template`: folders become templates of a server, are looked into, published, deleted, and what is left of them is collected."""

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from conftest import BINARY, DATA, run, until
from e2b import Sandbox

RUN = uuid.uuid4().hex


@pytest.fixture
def soulbox(server):
    """Runs the command line against the server, and deletes afterwards what a test has made."""
    names = []

    def call(*arguments: str, status: int = 0, **more):
        done = run("template", *arguments, **more)
        assert done.returncode == status, done
        return done

    def name(prefix: str = "own") -> str:
        names.append(f"{prefix}-{uuid.uuid4().hex[:12]}")
        return names[-1]

    call.name = name
    yield call
    for one in names:
        run("template", "delete", "--yes", one)


def folder(path: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return str(path)


def test_a_folder_becomes_a_template(soulbox, tmp_path):
    name = soulbox.name()
    config = f"""
template_name = "{name}"
cpu_count = 1
memory_mb = 128
start_cmd = "cd /srv/app && python3 -m http.server $PORT"
ready_cmd = "curl --silent --fail localhost:$PORT/hello.txt"
[env]
PORT = "8123"
[[users]]
name = "worker"
[[users]]
name = "keeper"
sudo = true
"""
    dockerfile = f"""# {RUN}
FROM debian:12
ENV GREETING="two words" RUN_OF_TESTS={RUN}
COPY --chown=worker app/ /srv/app/
COPY <<EOF /etc/written
here
EOF
RUN <<EOF
echo "$GREETING" > /greeting
EOF
USER worker
WORKDIR /srv/app
RUN ["sh", "-c", "id -un > who; pwd > where"]
"""
    files = {"app/hello.txt": "hello", "app/run.txt": RUN, "app/skipped.log": "x", ".dockerignore": "**/*.log\n"}
    path = folder(tmp_path, files | {"soulbox.toml": config, "Dockerfile": dockerfile})
    done = soulbox("build", path, "--tag", "v1", "--tag", "default", "--json")
    built = json.loads(done.stdout)
    assert built["tags"] == ["v1", "default"] and built["names"][0].endswith(f"/{name}"), built
    assert "uploading 1 archives" in done.stderr and "Template is ready" in done.stderr
    with Sandbox.create(f"{name}:v1", timeout=60) as sandbox:
        seen = sandbox.commands.run(
            "cat who where /greeting /etc/written; ls; id -un; stat -c %U hello.txt; curl -s localhost:8123/hello.txt; "
            "echo; sudo -n -u keeper sudo -n id -un 2>&1 | tail -n 1",
        )
        assert seen.stdout.split("\n")[:4] == ["worker", "/srv/app", "two words", "here"], seen
        assert seen.stdout.split("\n")[4:11] == ["hello.txt", "run.txt", "where", "who", "worker", "worker", "hello"], seen
        assert sandbox.commands.run("sudo -n id -un", user="keeper").stdout == "root\n"
        # 128 MiB are really all that there is.
        shown = sandbox.commands.run("python3 -c 'x = bytearray(40 << 20); print(len(x))'")
        assert shown.stdout == f"{40 << 20}\n"
        with pytest.raises(Exception):
            sandbox.commands.run("python3 -c 'x = bytearray(b\"1\") * (200 << 20)'")

    again = soulbox("build", path)
    assert again.stdout.startswith(f"{built['names'][0]} ") and again.stdout.endswith(" built\n"), again
    steps = [line for line in again.stderr.splitlines() if "[builder " in line and " ENV " not in line]
    assert steps and all(line.startswith("CACHED ") for line in steps), again.stderr
    assert "uploading" not in again.stderr


def test_ci_068_e2b_toml_is_taken_as_it_is(soulbox, tmp_path):
    name = soulbox.name()
    config = (
        f'id = "abc"\nname = "{name}"\ndockerfile = "e2b.Dockerfile"\ncpu_count = 2\nmemory_mb = 512\n'
        'start_cmd = "cd / && exec python3 -m http.server 8124"\nready_cmd = "curl --silent --fail localhost:8124/old"\n'
    )
    path = folder(tmp_path, {"e2b.toml": config, "e2b.Dockerfile": "FROM e2bdev/base\nUSER root\nRUN echo old > /old\n"})
    soulbox("build", path)
    with Sandbox.create(name, timeout=60) as sandbox:
        assert sandbox.commands.run("curl --silent localhost:8124/old").stdout == "old\n"
    shown = json.loads(soulbox("list", "--json").stdout)
    made = next(it for it in shown if name in it["aliases"])
    assert (made["cpuCount"], made["memoryMB"]) == (2, 512)


def test_from_nothing_to_a_template(soulbox, tmp_path):
    name = soulbox.name()
    path = str(tmp_path / "new")
    soulbox("init", path, "--name", name)
    soulbox("validate", path)
    assert "is not empty" in soulbox("init", path, status=1).stderr
    soulbox("build", path)
    assert name in soulbox("list").stdout
    with Sandbox.create(name, timeout=60) as sandbox:
        assert "Hello" in sandbox.commands.run("cat hello.txt").stdout

    done = soulbox("publish", name)
    assert done.stdout.strip().endswith(f"/{name}") and "public" in done.stderr
    assert json.loads(soulbox("unpublish", name, "--json").stdout)["public"] is False

    contents = json.loads(soulbox("inspect", name, "--json").stdout)
    packages = {(it["kind"], it["name"]) for it in contents["packages"]}
    assert {("debian", "curl"), ("debian", "python3.11"), ("node", "npm")} <= packages, len(packages)
    assert len(contents["layers"]) >= 2 and all(it["version"] for it in contents["packages"] if it["kind"] == "debian")
    assert "debian   curl " in soulbox("inspect", name).stdout

    assert "--yes" in soulbox("delete", name, status=2).stderr
    soulbox("delete", "--yes", name)
    assert "not found" in soulbox("inspect", name, status=1).stderr


def test_mistakes_have_a_place(soulbox, tmp_path):
    path = folder(tmp_path, {"soulbox.toml": "cpu_count = 3\n\nmemory_mb = 100\n", "Dockerfile": "FROM x\n"})
    for command in (["validate", path], ["build", path, "--name", "x"], ["validate", path + "/soulbox.toml"]):
        said = soulbox(*command, status=2).stderr
        assert "soulbox.toml line 1, column 13: 3 CPUs" in said and "line 3, column 13: 100 MiB" in said, said
    (tmp_path / "soulbox.toml").write_text("[[mounts]]\npath = '/data'\n")
    assert "line 1, column 3: `mounts` has no meaning yet" in soulbox("validate", path, status=2).stderr
    (tmp_path / "soulbox.toml").write_text("[network]\nallow_out = ['1.1.1.1', 'pypi.org']\n")
    assert "line 2, column 25: `pypi.org` is a domain" in soulbox("validate", path, status=2).stderr
    assert "failed to read `/no/such/folder`" in soulbox("validate", "/no/such/folder", status=2).stderr
    (tmp_path / "soulbox.toml").write_text("")
    for dockerfile, message in [
        ("FROM x\nCOPY --from=a b c\n", "Dockerfile: line 2: COPY --from is not supported"),
        ("FROM x\nCOPY nothing /\n", "`nothing` is nothing in"),
        ("FROM x\nCOPY ../x /\n", "leads out of the folder"),
    ]:
        (tmp_path / "Dockerfile").write_text(dockerfile)
        assert message in soulbox("build", path, "--name", "x", status=2).stderr
    (tmp_path / "Dockerfile").write_text("FROM e2bdev/base\nRUN echo last words >&2; exit 7\n")
    assert "the template has no name" in soulbox("build", path, status=2).stderr
    said = soulbox("build", path, "--name", soulbox.name(), status=1).stderr
    assert "exit status 7" in said and "last words" in said and "hint: step 3" in said, said
    os.remove(tmp_path / "Dockerfile")
    assert "soulbox template init" in soulbox("build", path, "--name", "x", status=2).stderr
    nobody = {"E2B_API_URL": "http://127.0.0.1:1"}
    assert "is the server running" in soulbox("list", status=1, env=nobody).stderr
    stranger = {"E2B_API_KEY": "e2b_" + "0" * 40}
    assert "is E2B_API_KEY a key of this server" in soulbox("list", status=1, env=stranger).stderr
    missing = soulbox("delete", "--yes", "not-there-1", "not-there-2", status=1).stderr
    assert "not-there-1" in missing and "not-there-2" in missing, missing
    schema = json.loads(soulbox("schema").stdout)
    assert schema["properties"]["memory_mb"]["minimum"] == 128


def test_what_a_template_says_of_its_sandboxes(soulbox, tmp_path):
    """A create that says nothing gets it; what a create says wins."""
    name = soulbox.name()
    config = """
[network]
allow_internet_access = false
allow_out = ["1.1.1.1"]
[idle]
timeout = 900
on_timeout = "pause"
auto_resume = true
"""
    path = folder(tmp_path, {"soulbox.toml": config, "Dockerfile": f"FROM e2bdev/base\nRUN echo {name} > /one\n"})
    soulbox("build", path, "--name", name)
    contents = json.loads(soulbox("inspect", name, "--json").stdout)
    assert contents["sandboxDefaults"]["timeout"] == 900 and contents["sandboxDefaults"]["network"] == {"allowOut": ["1.1.1.1"]}, contents
    assert "defaults {" in soulbox("inspect", name).stdout

    with Sandbox.create(name) as sandbox:
        info = sandbox.get_info()
        assert 890 < (info.end_at - info.started_at).total_seconds() < 910
        assert (info.lifecycle["on_timeout"], info.lifecycle["auto_resume"]) == ("pause", True)
        assert info.allow_internet_access is False and info.network["allow_out"] == ["1.1.1.1"], info
        # Where nothing may be reached there are no names either, and that is said at once.
        started = time.monotonic()
        assert sandbox.commands.run("getent hosts named.example || true", timeout=20).stdout == ""
        assert time.monotonic() - started < 10
    with Sandbox.create(name, timeout=60, allow_internet_access=True, lifecycle={"on_timeout": "kill"}) as sandbox:
        info = sandbox.get_info()
        assert (info.end_at - info.started_at).total_seconds() < 70
        assert info.lifecycle["on_timeout"] == "kill" and info.allow_internet_access is True and not info.network, info


def test_a_build_that_nobody_waits_for_goes_on(soulbox, tmp_path):
    name = soulbox.name()
    path = folder(tmp_path, {"Dockerfile": f"FROM e2bdev/base\nRUN sleep 5; echo {name} > /one\n"})
    building = subprocess.Popen([BINARY, "template", "build", path, "--name", name], stderr=subprocess.PIPE, text=True)
    said = ""
    while "] RUN sleep" not in said:
        line = building.stderr.readline()
        assert line, said
        said += line
    building.send_signal(signal.SIGINT)
    rest = building.communicate(timeout=20)[1]
    assert building.returncode == 130 and "the server goes on with the build" in rest, rest

    def is_ready() -> bool:
        return any(name in it["aliases"] and it["buildStatus"] == "ready" for it in json.loads(soulbox("list", "--json").stdout))

    until("the build is ready", is_ready, 60)
    with Sandbox.create(name, timeout=60) as sandbox:
        assert sandbox.commands.run("cat /one").stdout == f"{name}\n"


def layers(*arguments: str) -> list[str]:
    done = run("template", "gc", "--data-dir", str(DATA), "--json", *arguments)
    assert done.returncode == 0, done
    return json.loads(done.stdout)["layers"]


def test_what_nobody_needs_is_collected(soulbox, tmp_path):
    layers("--older-than", "0")
    name = soulbox.name()
    path = folder(tmp_path, {"Dockerfile": f"FROM e2bdev/base\nRUN echo {name} > /one\nRUN echo two > /two\n"})
    soulbox("build", path, "--name", name)
    # Of a template that is there nothing goes.
    assert layers("--older-than", "0") == []
    with Sandbox.create(name, timeout=60) as sandbox:
        assert sandbox.commands.run("cat /one /two").stdout == f"{name}\ntwo\n"
    soulbox("delete", "--yes", name)
    assert layers("--dry-run") == [], "they are young"
    found = layers("--older-than", "0", "--dry-run")
    assert len(found) >= 3 and layers("--older-than", "0") == found
    assert layers("--older-than", "0", "--dry-run") == []
    kept = {path.name for path in (DATA / "pool/layers").iterdir()}
    assert kept and not kept & set(found)
    # Another build makes them anew, and `base` is as it was.
    done = soulbox("build", path, "--name", name)
    assert "\n[builder 3/6] RUN" in done.stderr and "\n[builder 4/6] RUN" in done.stderr, done.stderr
    with Sandbox.create("base", timeout=60) as sandbox:
        assert sandbox.commands.run("echo fine").stdout == "fine\n"


def test_layers_of_a_sandbox_that_outlives_its_template_stay(soulbox, tmp_path):
    """A template with paused sandboxes is not deleted; a build of it that has no tag any more is forgotten by nobody."""
    name = soulbox.name()
    path = folder(tmp_path, {"Dockerfile": f"FROM e2bdev/base\nRUN echo {name} > /one\n"})
    soulbox("build", path, "--name", name)
    sandbox = Sandbox.create(name, timeout=60)
    (tmp_path / "Dockerfile").write_text(f"FROM e2bdev/base\nRUN echo other {name} > /one\n")
    soulbox("build", path, "--name", name)
    layers("--older-than", "0")
    assert sandbox.commands.run("cat /one").stdout == f"{name}\n"
    assert "sandbox" in soulbox("delete", "--yes", name, status=1).stderr
    sandbox.kill()
