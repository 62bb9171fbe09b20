"""PostgreSQL goes away while the server runs, and comes back; and one that is reached over TCP and asks for a password."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import json

import pytest
from conftest import Server, free_port, run, until
from e2b import Sandbox
from postgres import Cluster, _program, _unprivileged

PASSWORD = "a b/c:d@e?f#%"


class Stoppable(Cluster):
    """A cluster that can be stopped and started again, with a password for those who come over TCP."""

    def start(self) -> "Stoppable":
        as_user = _unprivileged()
        if as_user:
            uid, gid = (int(part.split("=")[1]) for part in as_user[:2])
            os.chown(self.folder, uid, gid)
        self.port = free_port()
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        options = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}", "--username=soulbox"]
        made = subprocess.run(
            ["setpriv", *as_user, _program("initdb"), "--pgdata", self.folder / "data", *options]
            + ["--no-sync", "--encoding=UTF8", "--locale=C"],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )
        assert made.returncode == 0, made.stderr
        with (self.folder / "data/postgresql.conf").open("a") as settings:
            settings.write("\npassword_encryption = 'scram-sha-256'\n")
        self.run_again()
        return self

    def run_again(self) -> None:
        as_user = _unprivileged()
        # The socket's name has the port in it; the URL of Cluster.database() has none, which means 5432.
        self.server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "INT", *as_user, _program("postgres"), "-D", self.folder / "data"]
            + ["-k", self.folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / "log", "a"),
            cwd=self.folder,
            start_new_session=True,
        )
        until("PostgreSQL answers", lambda: self._psql("postgres", "SELECT 1").returncode == 0, 60)

    def stop(self) -> None:
        self.server.send_signal(signal.SIGINT)
        self.server.wait(30)

    def listen_on_tcp(self) -> None:
        self.stop()
        with (self.folder / "data/postgresql.conf").open("a") as settings:
            settings.write(f"\nlisten_addresses = '127.0.0.1'\nport = {self.port}\n")
        as_user = _unprivileged()
        self.server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "INT", *as_user, _program("postgres"), "-D", self.folder / "data"]
            + ["-k", self.folder, "-c", "fsync=off"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / "log", "a"),
            cwd=self.folder,
            start_new_session=True,
        )

    def answers_on_tcp(self, password: str) -> bool:
        said = subprocess.run(
            [_program("psql"), "-X", "-U", "soulbox", "-d", "postgres", "-h", "127.0.0.1", "-p", str(self.port)]
            + ["-c", "SELECT 1"],
            capture_output=True,
            timeout=30,
            env=os.environ | {"PGPASSWORD": password},
        )
        return said.returncode == 0


@pytest.fixture
def cluster():
    made = Stoppable()
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture
def serve():
    """Starts a server on these records: `serve(url)`."""
    servers = []

    def make(url: str) -> Server:
        os.environ["SOULBOX_DATABASE_URL"] = url
        servers.append(Server())
        return servers[-1].start()

    yield make
    os.environ.pop("SOULBOX_DATABASE_URL", None)
    for server in servers:
        server.end()


def call(method: str, path: str, body=None) -> tuple[int, dict | None, dict]:
    headers = {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    made = urllib.request.Request(os.environ["E2B_API_URL"] + path, method=method, headers=headers, data=data)
    try:
        with urllib.request.urlopen(made, timeout=60) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None, {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), {k.lower(): v for k, v in error.headers.items()}


def test_an_outage_of_the_database_is_told_and_outlived(cluster, serve):
    server = serve(cluster.database())
    front = server.front()
    kept = Sandbox.create(timeout=300)
    assert kept.commands.run("echo before").stdout == "before\n"
    cluster.stop()
    create = {"templateID": "base", "timeout": 60}
    for method, path, body in [
        ("POST", "/v2/sandboxes", create),
        ("GET", "/v2/sandboxes", None),
        ("POST", f"/sandboxes/{kept.sandbox_id}/timeout", {"timeout": 200}),
        ("POST", "/v3/templates", {"name": "outage"}),
        ("DELETE", f"/sandboxes/{kept.sandbox_id}", None),
    ]:
        began = time.monotonic()
        status, said, headers = call(method, path, body)
        assert status == 503, (method, path, status, said)
        assert said["error_code"] == "records_unreachable" and "records" in said["message"], said
        assert headers["should-retry"] == "false"
        assert time.monotonic() - began < 30, path
    # What runs goes on, and can be reached: the way there does not lead through the records.
    assert kept.commands.run("echo meanwhile").stdout == "meanwhile\n"
    cluster.run_again()
    until("creates work again", lambda: call("GET", "/v2/sandboxes")[0] == 200, 60)
    status, made, _ = call("POST", "/v2/sandboxes", create)
    assert status == 201, made
    listed = {it["sandboxID"] for it in call("GET", "/v2/sandboxes")[1]}
    assert listed == {kept.sandbox_id, made["sandboxID"]}
    assert kept.commands.run("echo after").stdout == "after\n"
    assert server.front() == front, "the front is the same"
    kept.kill()
    assert call("DELETE", f"/sandboxes/{made['sandboxID']}")[0] == 204
    assert call("GET", "/v2/sandboxes")[1] == []
    counted = cluster.query("soulbox_1", "SELECT count(*) FROM sandboxes WHERE state <> 'dead'")
    assert counted == "0"


def test_a_deadline_in_an_outage_is_kept(cluster, serve):
    serve(cluster.database())
    short = Sandbox.create(timeout=4)
    cluster.stop()
    time.sleep(6)
    with pytest.raises(Exception):
        short.commands.run("true", request_timeout=10)
    cluster.run_again()
    until("the list works again", lambda: call("GET", "/v2/sandboxes")[0] == 200, 60)
    until("it is listed no more", lambda: call("GET", "/v2/sandboxes")[1] == [], 40)
    ended = "SELECT state FROM sandboxes"
    until("its row says so", lambda: cluster.query("soulbox_1", ended) == "dead", 40)


def test_a_database_over_tcp_with_a_password(cluster, serve):
    cluster.database()
    cluster.listen_on_tcp()
    until("PostgreSQL answers on TCP", lambda: cluster.answers_on_tcp(PASSWORD), 60)
    assert not cluster.answers_on_tcp("wrong"), "a password is asked for"
    from urllib.parse import quote

    url = f"postgres://soulbox:{quote(PASSWORD, safe='')}@127.0.0.1:{cluster.port}/soulbox_1"
    server = serve(url)
    with Sandbox.create(timeout=60) as made:
        assert made.commands.run("echo hi").stdout == "hi\n"
    said = run("db", "migrate", "--data-dir", str(server.data), env={"SOULBOX_DATABASE_URL": url})
    assert said.returncode == 0, said.stderr
    bad = url.replace(quote(PASSWORD, safe=""), "wrong-secret")
    said = run("db", "migrate", "--data-dir", str(server.data), env={"SOULBOX_DATABASE_URL": bad})
    assert said.returncode == 1 and "password authentication failed" in said.stderr, said.stderr
    assert "wrong-secret" not in said.stderr
    text = server.log.read_text()
    assert PASSWORD not in text and quote(PASSWORD, safe="") not in text
