"""Two fronts on one PostgreSQL and one host: what one does, the other knows at once, and nothing is decided twice."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import BINARY, Server, free_port, run, until
from e2b import NotFoundException, Sandbox
from postgres import Cluster


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        yield made.start()
    finally:
        made.end()


class Second:
    """`soulbox api` beside a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def start(self) -> "Second":
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SOULBOX_")}
        self.process = subprocess.Popen(
            [BINARY, "api", "--data-dir", str(self.server.data), "--listen", f"127.0.0.1:{self.port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.server.log, "a"),
            env=environment,
        )
        until("the second front answers", self.answers, 60)
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, self.server.log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0


@pytest.fixture(scope="module")
def fronts(cluster):
    """The URLs of both, and the server and the database behind them."""
    os.environ["SOULBOX_DATABASE_URL"] = url = cluster.database()
    server = Server()
    second = Second(server)
    try:
        server.start()
        second.start()
        yield f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{second.port}", server, url
    finally:
        os.environ.pop("SOULBOX_DATABASE_URL", None)
        try:
            second.end()
        finally:
            server.end()


def at(url: str) -> dict:
    return {"api_url": url, "sandbox_url": url}


def rows(cluster, sandbox_id: str) -> str:
    return cluster.query("soulbox_1", f"SELECT state, epoch, cause FROM sandboxes WHERE sandbox_id = '{sandbox_id}'")


def test_cp_160_made_on_one_and_ended_on_the_other(fronts, cluster):
    one, two, *_ = fronts
    for here, there in [(one, two), (two, one)]:
        made = Sandbox.create(timeout=120, metadata={"of": here}, **at(here))
        # At once, by the other's API and by the other's ingress.
        assert Sandbox.get_info(made.sandbox_id, **at(there)).metadata == {"of": here}
        elsewhere = Sandbox.connect(made.sandbox_id, **at(there))
        assert elsewhere.commands.run("echo there").stdout == "there\n"
        assert made.commands.run("echo here").stdout == "here\n"
        listed = Sandbox.list(**at(there)).next_items()
        assert made.sandbox_id in [info.sandbox_id for info in listed]
        assert Sandbox.kill(made.sandbox_id, **at(there)) is True
        with pytest.raises(NotFoundException):
            Sandbox.get_info(made.sandbox_id, **at(here))
        assert Sandbox.kill(made.sandbox_id, **at(here)) is False
        until("its ports are gone on both", lambda: not made.is_running() and not elsewhere.is_running(), 5)
        assert rows(cluster, made.sandbox_id).startswith("dead|"), rows(cluster, made.sandbox_id)


def test_the_first_request_may_go_to_the_other_ingress(fronts):
    one, two, *_ = fronts
    for _ in range(5):
        made = Sandbox.create(timeout=60, **at(one))
        # The other front has heard nothing by its API.
        elsewhere = Sandbox(
            sandbox_id=made.sandbox_id,
            sandbox_domain=None,
            envd_version=made._envd_version,
            envd_access_token=made._envd_access_token,
            traffic_access_token=None,
            connection_config=made.connection_config.__class__(**at(two)),
        )
        assert elsewhere.is_running()
        made.kill()


def test_racing_kills_have_one_winner(fronts, cluster):
    one, two, *_ = fronts
    for _ in range(5):
        made = Sandbox.create(timeout=60, **at(one))
        with ThreadPoolExecutor(8) as pool:
            kills = [pool.submit(Sandbox.kill, made.sandbox_id, **at(url)) for url in [one, two] * 4]
            outcomes = [kill.result() for kill in kills]
        assert True in outcomes
        state, epoch, cause = rows(cluster, made.sandbox_id).split("|")
        # Epoch 1 was the create: one decision more and no other.
        assert (state, epoch, cause) == ("dead", "2", "killed")


def test_an_expiry_is_decided_once(fronts, cluster):
    one, two, *_ = fronts
    made = Sandbox.create(timeout=3, **at(two))
    started = time.monotonic()
    until("it is over on both", lambda: not made.is_running(), 20)
    assert time.monotonic() - started > 1
    until("its row says so", lambda: rows(cluster, made.sandbox_id).startswith("dead|"), 20)
    state, epoch, cause = rows(cluster, made.sandbox_id).split("|")
    assert (state, cause) == ("dead", "expired") and int(epoch) <= 2


def test_a_deadline_moved_on_one_holds_on_the_other(fronts):
    one, two, *_ = fronts
    made = Sandbox.create(timeout=4, **at(one))
    Sandbox.set_timeout(made.sandbox_id, 60, **at(two))
    time.sleep(6)
    for url in (one, two):
        assert Sandbox.get_info(made.sandbox_id, **at(url)).sandbox_id == made.sandbox_id
        assert Sandbox.connect(made.sandbox_id, timeout=60, **at(url)).commands.run("echo on").stdout == "on\n"
    made.kill()


def test_a_key_is_revoked_on_both_at_once(fronts):
    one, two, server, url = fronts
    database = {"SOULBOX_DATABASE_URL": url}
    where = ("--data-dir", str(server.data))
    made = run("admin", "key", "create", "default", "--name", "short", *where, env=database)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    for front in (one, two):
        assert Sandbox.list(api_key=key, **at(front)).next_items() is not None
    shown = run("admin", "key", "list", "default", *where, env=database).stdout
    key_id = next(line.split()[0] for line in shown.splitlines() if " short " in line)
    assert run("admin", "key", "revoke", "default", key_id, *where, env=database).returncode == 0

    def refused(front: str) -> bool:
        request = urllib.request.Request(f"{front}/v2/sandboxes", headers={"X-API-Key": key})
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            return error.code == 401
        return False

    until("both refuse it", lambda: refused(one) and refused(two), 5)


def test_a_front_that_dies_leaves_the_other_in_charge(fronts):
    one, two, server, _ = fronts
    made = Sandbox.create(timeout=5, **at(one))
    os.kill(server.front(), signal.SIGKILL)
    assert Sandbox.connect(made.sandbox_id, timeout=5, **at(two)).commands.run("echo on").stdout == "on\n"
    Sandbox.set_timeout(made.sandbox_id, 1, **at(two))
    until("the other ends it in time", lambda: not made.is_running(), 20)
    until("the first is back", server.answers, 30)
