"""The official command line as people have it: what it prints and how it exits, against the server of E2B_API_URL."""

import fcntl
import http.client
import json
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
from conftest import TEMPLATE, api
from e2b import AuthenticationException, NotFoundException, Sandbox
from generation import OLD

PROGRAM = str(Path(".cache/node-cli/node_modules/.bin/e2b").resolve())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Nobody is logged in there."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cli(home):
    assert Path(PROGRAM).exists(), "run scripts/setup.sh sdks"

    def run(*arguments: str, **more) -> subprocess.CompletedProcess:
        environment = os.environ | {"HOME": str(home), "NO_COLOR": "1", "NO_UPDATE_NOTIFIER": "1"} | more.pop("env", {})
        environment = {name: value for name, value in environment.items() if value is not None}
        more = {"stdin": subprocess.DEVNULL} | more if "input" not in more else more
        return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=environment, timeout=90, **more)

    return run


@pytest.fixture
def made():
    """Sandboxes that a test made by the command line; gone after it."""
    ids: list[str] = []
    yield ids
    for sandbox_id in ids:
        Sandbox.kill(sandbox_id)


@pytest.fixture
def create(cli, made):
    def create(*arguments: str) -> str:
        done = cli("sandbox", "create", TEMPLATE, "-d", *arguments)
        assert done.returncode == 0, done
        made.append(done.stdout.strip())
        return made[-1]

    return create


def test_cli_001_help_needs_no_server(cli):
    nowhere = {"E2B_API_URL": "http://127.0.0.1:1"}
    version = cli("--version", env=nowhere)
    assert (version.returncode, version.stdout.strip()) == (0, "2.19.0")
    assert cli("template", "--help", env=nowhere).returncode == 0


def test_cli_002_nobody_is_logged_in(cli):
    done = cli("template", "list", env={"E2B_API_KEY": None})
    assert done.returncode == 1 and "logged in" in done.stderr


def test_cli_003_templates(cli):
    done = cli("template", "list")
    assert done.returncode == 0, done
    header = next(line for line in done.stdout.splitlines() if line.strip())
    for column in ("ACCESS", "TEMPLATE ID", "TEMPLATE NAME", "VCPUS", "RAM MIB"):
        assert column in header
    assert TEMPLATE in done.stdout


def test_cli_004_a_wrong_key(cli):
    done = cli("template", "list", env={"E2B_API_KEY": "e2b_" + "00" * 20})
    assert done.returncode == 1
    assert re.search("401|[Uu]nauthorized", done.stdout + done.stderr), done


def relay(listener: socket.socket, connect) -> None:
    """Carries bytes between a listener's connections and others, until the listener is closed."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = connect()
            for ends in ((client, server), (server, client)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def test_cli_005_debug_is_port_3000_of_this_machine(home, tmp_path):
    # In a network of its own, so that nobody else has the port there.
    url = urllib.parse.urlsplit(os.environ["E2B_API_URL"])
    path = str(tmp_path / "relay")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        relay(listener, lambda: socket.create_connection((url.hostname, url.port)))
        inside = textwrap.dedent(f"""
            import socket, subprocess, sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from test_cli import relay
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            def connect():
                made = socket.socket(socket.AF_UNIX)
                made.connect({path!r})
                return made
            listener = socket.create_server(("127.0.0.1", 3000))
            relay(listener, connect)
            sys.exit(subprocess.run([{PROGRAM!r}, "template", "list"], stdin=subprocess.DEVNULL).returncode)
        """)
        environment = {name: value for name, value in os.environ.items() if name not in ("E2B_API_URL", "E2B_SANDBOX_URL")}
        environment |= {"HOME": str(home), "NO_COLOR": "1", "NO_UPDATE_NOTIFIER": "1", "E2B_DEBUG": "true"}
        done = subprocess.run(["unshare", "--net", sys.executable, "-c", inside], capture_output=True, text=True, env=environment, timeout=90)
    assert done.returncode == 0, done
    assert "TEMPLATE ID" in done.stdout and TEMPLATE in done.stdout


def test_cli_006_the_form_of_a_key_is_the_servers_business():
    with pytest.raises(AuthenticationException, match="authorization header is malformed"):
        # The older package has an opinion of its own unless it is asked not to.
        Sandbox.create(TEMPLATE, api_key="of-another-form", **({"validate_api_key": False} if OLD else {}))


def test_cli_014_bodies_in_chunks(own):
    sandbox_id = own(timeout=60).sandbox_id
    url = urllib.parse.urlsplit(os.environ["E2B_API_URL"])
    headers = {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}

    def chunked(method: str, path: str, body: bytes) -> int:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
        connection.request(method, path, iter([body[:3], body[3:]]), headers, encode_chunked=True)
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    assert chunked("POST", f"/sandboxes/{sandbox_id}/timeout", b'{"timeout": 90}') == 204
    assert chunked("POST", f"/sandboxes/{sandbox_id}/connect", b'{"timeout": 90}') == 200
    assert chunked("POST", f"/sandboxes/{sandbox_id}/refreshes", b'{"duration": 90}') == 204
    assert chunked("PUT", f"/sandboxes/{sandbox_id}/network", b'{"denyOut": []}') == 204
    assert chunked("PATCH", f"/v2/templates/{TEMPLATE}", b'{"public": true}') != 411
    assert chunked("POST", "/sandboxes", b'{"templateID": 7}') == 400
    assert chunked("DELETE", f"/sandboxes/{sandbox_id}", b"{}    ") == 204


def test_cli_015_create_prints_the_id(create):
    sandbox_id = create("--timeout", "60")
    assert re.fullmatch("[a-z0-9]+", sandbox_id)
    info = Sandbox.get_info(sandbox_id)
    assert 50 < (info.end_at - info.started_at).total_seconds() < 75


def test_cli_016_what_is_refused_before_it_is_sent(cli):
    for arguments in (("--timeout", "29"), ("--lifecycle.autoresume",)):
        done = cli("sandbox", "create", TEMPLATE, "-d", *arguments)
        assert done.returncode == 1 and not done.stdout.strip(), done


def test_cli_018_list_as_json(cli, own):
    mark = f"cli-{time.time_ns()}"
    sandbox = own(timeout=120, metadata={"mark": mark})
    listed = lambda *more: [item["sandboxId"] for item in json.loads(cli("sandbox", "list", "-f", "json", *more).stdout)]
    item = next(it for it in json.loads(cli("sandbox", "list", "-f", "json").stdout) if it["sandboxId"] == sandbox.sandbox_id)
    assert item["metadata"] == {"mark": mark} and item["state"] == "running"
    assert listed("-m", f"mark={mark}") == [sandbox.sandbox_id]
    assert listed("-m", "mark=of-nobody") == []
    for template in (TEMPLATE, item["templateId"]):
        assert sandbox.sandbox_id in listed("-t", template)


def test_cli_019_only_the_first(cli, own):
    mark = f"cli-{time.time_ns()}"
    for _ in range(2):
        own(timeout=120, metadata={"mark": mark})
    first = cli("sandbox", "list", "-l", "1", "-m", f"mark={mark}")
    assert "Showing first 1" in first.stdout + first.stderr, first
    everything = cli("sandbox", "list", "-l", "0", "-f", "json", "-m", f"mark={mark}")
    assert len(json.loads(everything.stdout)) == 2


def test_cli_020_order(cli, own):
    mark = f"cli-{time.time_ns()}"
    made = [own(timeout=120, metadata={"mark": mark}).sandbox_id for _ in range(3)]
    done = cli("sandbox", "list", "-s", "running,paused", "-o", "desc", "-f", "json", "-m", f"mark={mark}")
    assert [item["sandboxId"] for item in json.loads(done.stdout)] == made[::-1]


def test_cli_021_info(cli, sandbox):
    info = json.loads(cli("sandbox", "info", sandbox.sandbox_id, "-f", "json").stdout)
    assert (info["sandboxId"], info["state"]) == (sandbox.sandbox_id, "running")
    unknown = cli("sandbox", "info", "iaaaaaaaaaaaaaaaaaaaa")
    assert unknown.returncode == 1 and "wasn't found" in unknown.stdout + unknown.stderr


def test_cli_022_the_exit_code_is_the_commands(cli, sandbox):
    done = cli("sandbox", "exec", sandbox.sandbox_id, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    # After what the command said, the program says how it ended.
    assert done.stderr.startswith("err\n") and "out" not in done.stderr


def test_cli_023_input_by_a_pipe(cli, sandbox):
    done = cli("sandbox", "exec", sandbox.sandbox_id, "cat", input="hi\n")
    assert (done.returncode, done.stdout) == (0, "hi\n")


def test_cli_024_in_the_background(cli, sandbox):
    done = cli("sandbox", "exec", "-b", sandbox.sandbox_id, "sleep", "30")
    assert done.returncode == 0
    pid = int(re.search(r"\d+", done.stderr)[0])
    assert pid in [process.pid for process in sandbox.commands.list()]
    assert sandbox.commands.kill(pid)


def test_cli_025_user_folder_and_environment(cli, sandbox):
    done = cli("sandbox", "exec", "-u", "root", "-c", "/tmp", "-e", "A=1", sandbox.sandbox_id, "id -u; pwd; echo $A")
    assert done.stdout.split() == ["0", "/tmp", "1"]


def test_cli_027_kill(cli, own):
    mark = f"cli-{time.time_ns()}"
    one, two, three, four = (own(timeout=120, metadata={"mark": m}).sandbox_id for m in ("x", "x", mark, "x"))
    assert cli("sandbox", "kill", one, two).returncode == 0
    for sandbox_id in (one, two):
        with pytest.raises(NotFoundException):
            Sandbox.get_info(sandbox_id)
    missing = cli("sandbox", "kill", "iaaaaaaaaaaaaaaaaaaaa")
    assert missing.returncode == 0 and missing.stderr.strip()
    assert cli("sandbox", "kill", "-a", "-m", f"mark={mark}").returncode == 0
    with pytest.raises(NotFoundException):
        Sandbox.get_info(three)
    assert Sandbox.get_info(four).sandbox_id == four


def test_cli_028_logs(cli, home, own):
    sandbox = own(timeout=120)
    sandbox.commands.run("echo hello")
    done = cli("sandbox", "logs", sandbox.sandbox_id)
    assert done.returncode == 0, done
    for word in ("sandbox started", "process_start", "process_end", "echo hello"):
        assert word in done.stdout, done.stdout
    everything = cli("sandbox", "logs", "--level", "DEBUG", "--format", "json", sandbox.sandbox_id).stdout
    lines = [json.loads(line) for line in everything.splitlines() if line.startswith("{")]
    assert [line["message"] for line in lines] == ["sandbox started", "process_start", "process_end"]
    assert "process_start" not in cli("sandbox", "logs", "--level", "ERROR", sandbox.sandbox_id).stdout
    environment = os.environ | {"HOME": str(home), "NO_COLOR": "1", "NO_UPDATE_NOTIFIER": "1"}
    following = subprocess.Popen(
        [PROGRAM, "sandbox", "logs", "-f", sandbox.sandbox_id], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert "sandbox started" in "".join(following.stdout.readline() for _ in range(4))
        sandbox.kill()
        rest, _ = following.communicate(timeout=25)
        # It asks for lines and for the state at once: whether it shows the last line depends on which answer comes first.
        assert following.returncode == 0, rest
        assert "sandbox ended" in api("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs").text
    finally:
        following.kill()
        following.wait()


def test_cli_029_metrics(cli, sandbox):
    until_sampled = time.monotonic() + 30
    while not (samples := api("GET", f"/sandboxes/{sandbox.sandbox_id}/metrics").text) or samples == "[]":
        assert time.monotonic() < until_sampled, "no sample"
        time.sleep(0.5)
    text = cli("sandbox", "metrics", sandbox.sandbox_id)
    assert text.returncode == 0 and all(word in text.stdout for word in ("CPU", "Memory", "Disk")), text
    done = cli("sandbox", "metrics", "--format", "json", sandbox.sandbox_id)
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith(("{", "[")))
    for name in ("cpuCount", "memTotal", "diskTotal"):
        assert name in line, done.stdout


def test_cli_031_a_shell(home, sandbox):
    environment = os.environ | {"HOME": str(home), "NO_UPDATE_NOTIFIER": "1", "TERM": "xterm"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PROGRAM, [PROGRAM, "sandbox", "connect", sandbox.sandbox_id], environment)
    seen = b""

    def hears(what: bytes, within: float = 20) -> None:
        nonlocal seen
        end = time.monotonic() + within
        while what not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)
        seen = seen.split(what, 1)[1]

    def says(text: str) -> None:
        os.write(terminal, text.encode())

    try:
        hears(b"$ ", 40)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
        time.sleep(1)
        says("stty size\r")
        hears(b"33 111")
        # Silence is not the end of it.
        time.sleep(32)
        says("echo still-$((40 + 2))\r")
        hears(b"still-42")
        says("exit\r")
        end = time.monotonic() + 20
        while (status := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end, "it does not end"
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    os.read(terminal, 65536)
                except OSError:
                    pass
        pid = 0
        assert os.waitstatus_to_exitcode(status[1]) == 0
    finally:
        if pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(terminal)


def test_sdk_15_the_old_routes(cli, create):
    sandbox_id = create("--timeout", "60")
    assert cli("sandbox", "exec", sandbox_id, "echo", "hi").stdout == "hi\n"
    for command, state in (("pause", "paused"), ("resume", "running")):
        assert cli("sandbox", command, sandbox_id).returncode == 0
        assert Sandbox.get_info(sandbox_id).state == state
    assert cli("sandbox", "exec", sandbox_id, "echo", "again").stdout == "again\n"


def test_cp_157_from_create_to_kill(cli, create):
    sandbox_id = create()
    assert sandbox_id in cli("sandbox", "list").stdout
    assert cli("sandbox", "exec", sandbox_id, "true").returncode == 0
    assert "process_end" in cli("sandbox", "logs", sandbox_id).stdout
    assert cli("sandbox", "metrics", sandbox_id).returncode == 0
    assert cli("sandbox", "pause", sandbox_id).returncode == 0
    assert sandbox_id in cli("sandbox", "list", "-s", "paused").stdout
    assert cli("sandbox", "resume", sandbox_id).returncode == 0
    assert cli("sandbox", "exec", sandbox_id, "true").returncode == 0
    assert cli("sandbox", "kill", sandbox_id).returncode == 0
    assert sandbox_id not in cli("sandbox", "list").stdout


def test_cli_017_a_timeout_pauses(cli, create):
    sandbox_id = create("--lifecycle.ontimeout", "pause", "--timeout", "30")
    Sandbox.set_timeout(sandbox_id, 1)
    end = time.monotonic() + 20
    while "paused" not in (shown := cli("sandbox", "info", sandbox_id)).stdout.lower():
        assert shown.returncode == 0 and time.monotonic() < end, shown
        time.sleep(0.5)


def test_cli_026_pause_and_resume(cli, own):
    sandbox = own(timeout=120)
    sandbox.files.write("/home/user/file", "kept")
    pid = sandbox.commands.run("sleep 300", background=True, timeout=0).pid
    first, second = cli("sandbox", "pause", sandbox.sandbox_id), cli("sandbox", "pause", sandbox.sandbox_id)
    assert first.returncode == 0, first
    assert second.returncode == 0 and "already paused" in second.stdout + second.stderr, second
    assert api("GET", f"/sandboxes/{sandbox.sandbox_id}").text.count('"paused"') == 1
    resumed = cli("sandbox", "resume", sandbox.sandbox_id)
    assert resumed.returncode == 0, resumed
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("/home/user/file") == "kept"
    assert pid in [process.pid for process in again.commands.list()]
    for command in ("pause", "resume"):
        assert cli("sandbox", command, "iaaaaaaaaaaaaaaaaaaaa").returncode == 1


def test_cli_030_snapshots(cli, own, made):
    sandbox, name = own(timeout=120), f"cli{os.getpid()}"
    sandbox.files.write("/home/user/file", "kept")
    done = cli("sandbox", "snapshot", "create", "-n", name, sandbox.sandbox_id)
    assert done.returncode == 0 and "Created snapshot" in done.stdout + done.stderr, done
    rows = json.loads(cli("sandbox", "snapshot", "list", "-f", "json", sandbox.sandbox_id).stdout)
    assert [row["snapshotId"] if "snapshotId" in row else row["snapshotID"] for row in rows] == [f"default/{name}:default"], rows
    assert name in cli("sandbox", "snapshot", "list", "-n", name).stdout
    created = cli("sandbox", "create", name, "-d", "--timeout", "60")
    assert created.returncode == 0, created
    made.append(created.stdout.strip())
    assert Sandbox.connect(made[-1]).files.read("/home/user/file") == "kept"
    Sandbox.kill(made[-1])
    assert cli("sandbox", "snapshot", "delete", name).returncode == 0
    assert name not in cli("sandbox", "snapshot", "list", sandbox.sandbox_id).stdout
    missing = cli("sandbox", "snapshot", "delete", name)
    assert missing.returncode == 0 and "wasn't found" in missing.stderr, missing
