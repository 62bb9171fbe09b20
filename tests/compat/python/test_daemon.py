"""The daemon by itself, as its host starts it: `/init`, and the SDKs in debug mode, without a control plane.

SOULBOX_ENVD names the program; it runs as root of this machine, in namespaces of its own where it is to use a fixed port.
"""

import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ENVD = str(Path(os.environ.get("SOULBOX_ENVD", "target/guests/envd")).resolve())
SECRET = bytes(range(16))


class Daemon:
    def __init__(self, *, secret: bytes | None) -> None:
        arguments, inherited = ["--listen", "127.0.0.1:0"], ()
        if secret is not None:
            reading, writing = os.pipe()
            os.write(writing, secret.hex().encode())
            os.close(writing)
            arguments += ["--init-secret-fd", str(reading)]
            inherited = (reading,)
        self.process = subprocess.Popen(
            [ENVD, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pass_fds=inherited
        )
        for descriptor in inherited:
            os.close(descriptor)
        said = self.process.stderr.readline()
        self.base = "http://" + re.fullmatch(r"listening on (\S+)\n", said).group(1)

    def init(self, body: dict | bytes, key: bytes | None = None) -> httpx.Response:
        """`/init`, signed with a key when there is one."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["X-Soulbox-Init-Signature"] = hmac.new(key, content, hashlib.sha256).hexdigest()
        return httpx.post(self.base + "/init", content=content, headers=headers)

    def envs(self, token: str | None = None) -> httpx.Response:
        return httpx.get(self.base + "/envs", headers={"X-Access-Token": token} if token else {})

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def daemon():
    running = Daemon(secret=None)
    yield running
    running.end()


@pytest.fixture
def secured():
    running = Daemon(secret=SECRET)
    yield running
    running.end()


def test_envd_143_the_first_init(daemon):
    answer = daemon.init({"accessToken": "first", "envVars": {"A": "1"}})
    assert (answer.status_code, answer.content) == (204, b"")
    assert re.fullmatch(r"\d+\.\d+\.\d+", answer.headers["x-envd-version"])
    assert daemon.envs().status_code == 401
    assert daemon.envs("first").json()["A"] == "1"


def test_envd_144_who_may_change_the_token(daemon, secured):
    """Where upstream asks its metadata service, the host signs with a secret that it shares with the daemon alone."""
    assert daemon.init({"accessToken": "one"}).status_code == 204
    assert daemon.init({"accessToken": "one"}).status_code == 204
    assert daemon.init({"accessToken": "other"}).status_code == 401
    assert daemon.init({}).status_code == 401, "clearing is a change too"
    assert daemon.envs("one").status_code == 200
    assert secured.init({"accessToken": "one"}).status_code == 401
    assert secured.init({"accessToken": "one"}, b"wrong").status_code == 401
    assert secured.init({"accessToken": "one"}, SECRET).status_code == 204
    assert secured.init({"accessToken": "other"}, SECRET).status_code == 204
    assert (secured.envs("one").status_code, secured.envs("other").status_code) == (401, 200)
    assert secured.init({}, SECRET).status_code == 204
    assert secured.envs().status_code == 200


def test_envd_145_an_older_call_changes_nothing(secured):
    def init(second: int, **more):
        return secured.init({"timestamp": f"2030-01-01T00:00:{second:02}Z", **more}, SECRET)

    assert init(30, accessToken="new", envVars={"A": "new"}).status_code == 204
    assert init(10, accessToken="old", envVars={"A": "old"}).status_code == 204
    assert secured.envs("new").json()["A"] == "new" and secured.envs("old").status_code == 401
    assert init(40, accessToken="newer", envVars={"A": "newer"}).status_code == 204
    assert secured.envs("newer").json()["A"] == "newer"


def test_envd_146_variables_are_replaced(secured):
    assert secured.init({"envVars": {"A": "1", "B": "2"}}, SECRET).status_code == 204
    assert secured.init({"envVars": {"B": "3", "E2B_SANDBOX": "changed"}}, SECRET).status_code == 204
    envs = secured.envs().json()
    assert "A" not in envs and (envs["B"], envs["E2B_SANDBOX"]) == ("3", "true")
    assert secured.init({}, SECRET).status_code == 204
    assert secured.envs().json()["B"] == "3", "absent means unchanged"


def test_init_takes_no_nonsense(daemon):
    assert daemon.init(b"{").status_code == 400
    assert daemon.init({"accessToken": ""}).status_code == 400
    assert daemon.init({"timestamp": "yesterday"}).status_code == 400


DEBUG = r"""
import sys, tempfile, time, warnings
from e2b import CommandExitException, FileNotFoundException, PtySize, Sandbox
warnings.simplefilter("ignore")
sandbox = Sandbox.create()
assert sandbox.sandbox_id == "debug_sandbox_id" and sandbox.is_running()
folder = tempfile.mkdtemp()
sandbox.files.write(f"{folder}/a/b.txt", "text", metadata={"k": "v"})
assert sandbox.files.read(f"{folder}/a/b.txt") == "text"
assert [entry.path for entry in sandbox.files.list(folder, depth=2)] == [f"{folder}/a", f"{folder}/a/b.txt"]
assert sandbox.files.exists(f"{folder}/a") and not sandbox.files.exists(f"{folder}/b")
watch = sandbox.files.watch_dir(folder, recursive=True)
sandbox.files.rename(f"{folder}/a/b.txt", f"{folder}/c.txt")
time.sleep(0.3)
assert {event.name for event in watch.get_new_events()} >= {"a/b.txt", "c.txt"}
watch.stop()
try:
    sandbox.files.read(f"{folder}/none")
    raise SystemExit("read what is not there")
except FileNotFoundException:
    pass
assert sandbox.commands.run("echo $A", envs={"A": "1"}, cwd=folder).stdout == "1\n"
try:
    sandbox.commands.run("exit 3")
    raise SystemExit("no exit code")
except CommandExitException as error:
    assert error.exit_code == 3
cat = sandbox.commands.run("cat", background=True, stdin=True)
sandbox.commands.send_stdin(cat.pid, "in")
sandbox.commands.close_stdin(cat.pid)
assert cat.wait().stdout == "in"
terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
sandbox.pty.resize(terminal.pid, PtySize(rows=24, cols=99))
sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
shown = []
terminal.wait(on_pty=shown.append)
assert b"24 99" in b"".join(shown)
git = f"{folder}/git"
sandbox.git.init(git, initial_branch="main")
sandbox.files.write(f"{git}/file", "x")
sandbox.git.add(git)
sandbox.git.commit(git, "first", author_name="A", author_email="a@example.com")
assert sandbox.git.status(git).is_clean and sandbox.git.branches(git).current_branch == "main"
sandbox.files.remove(folder)
assert sandbox.kill()
print("all of it")
"""


@pytest.mark.parametrize("client", ["latest", "245"])
def test_envd_155_debug_mode_needs_no_control_plane(client):
    python = Path(sys.prefix).parent / f"venv-{client}" / "bin" / "python"
    inside = 'ip link set lo up && "$0" --listen 127.0.0.1:49983 2> /dev/null & sleep 0.5; exec "$@"'
    keep = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")}
    ran = subprocess.run(
        # All of it ends with the first process.
        ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside, ENVD, python, "-c", DEBUG],
        env=keep | {"E2B_DEBUG": "true"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "all of it\n", ran.stderr
