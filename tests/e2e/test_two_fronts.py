"""Two fronts on one PostgreSQL and one host: what one does, the other knows at once, and nothing is decided twice.

Callers race on both for SOULBOX_RACE_SECONDS (20; `make soak` takes 300). A failure names its seed; SOULBOX_RACE_SEED repeats the
choices of each caller, though not who wins.
"""

import json
import os
import random
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import BINARY, DATA, Server, free_port, run, until
from e2b import NotFoundException, Sandbox, SandboxState
from footprint import Footprint, Objects
from postgres import Cluster

RACE_SECONDS = float(os.environ.get("SOULBOX_RACE_SECONDS", "20"))
RACE_SEED = int(os.environ.get("SOULBOX_RACE_SEED", str(random.SystemRandom().randrange(10**6))))
WARM, PARKED = 4, 2
# A front's own to PostgreSQL at the most; it opens them as calls come at once, and keeps them.
CONNECTIONS = 16


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
        server.start("--warm", str(WARM), "--parked", str(PARKED))
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


def test_cp_160_paused_on_both_at_once(fronts, cluster):
    one, two, *_ = fronts
    made = Sandbox.create(timeout=120, **at(one))
    made.files.write("/home/user/file", "kept")
    pid = made.commands.run("sleep 300", background=True, timeout=0).pid
    for round in range(3):
        with ThreadPoolExecutor(4) as pool:
            paused = list(pool.map(lambda front: Sandbox.pause(made.sandbox_id, **at(front)), (one, two, one, two)))
        # Who comes when it is over hears that it is paused already.
        assert any(paused), paused
        assert Sandbox.get_info(made.sandbox_id, **at(two)).state == SandboxState.PAUSED
        snapshots = [path.name for path in (DATA / "pool/snapshots").iterdir() if made.sandbox_id in path.name]
        assert len(snapshots) == 1, snapshots
        here, there = ((one, two), (two, one))[round % 2]
        Sandbox.connect(made.sandbox_id, timeout=120, **at(there))
        elsewhere = Sandbox.connect(made.sandbox_id, timeout=120, **at(here))
        assert elsewhere.files.read("/home/user/file") == "kept"
        assert pid in [process.pid for process in elsewhere.commands.list()]
        until("its snapshot is gone", lambda: not [it for it in (DATA / "pool/snapshots").iterdir() if made.sandbox_id in it.name], 10)
    assert Sandbox.kill(made.sandbox_id, **at(one)) is True
    assert rows(cluster, made.sandbox_id).startswith("dead|")


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


def ask(front: str, method: str, path: str, body: dict | None = None) -> tuple[int, object]:
    """One request; status and body."""
    request = urllib.request.Request(
        front + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, said = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, said = error.code, error.read()
    return status, json.loads(said) if said else None


def test_a_log_is_the_same_on_both(fronts):
    one, two, *_ = fronts
    made = Sandbox.create(timeout=120, **at(one))
    made.commands.run("true")
    assert Sandbox.kill(made.sandbox_id, **at(two)) is True

    def log(front: str) -> list[dict]:
        return ask(front, "GET", f"/v2/sandboxes/{made.sandbox_id}/logs")[1]["logs"]

    def agreed() -> bool:
        messages = Counter(line["message"] for line in log(one))
        return messages["sandbox started"] == messages["sandbox ended"] == 1 and log(one) == log(two)

    # Each writes what it has noted within two seconds; both have noted the end.
    until("both have written it", agreed)
    time.sleep(3)
    assert agreed(), (log(one), log(two))


def listed(front: str, states: str = "running,paused") -> set[str]:
    status, page = ask(front, "GET", f"/v2/sandboxes?limit=100&state={states}")
    assert status == 200 and len(page) < 100, (status, page)
    return {sandbox["sandboxID"] for sandbox in page}


class Races:
    """Callers that each make sandboxes of their own and, more often, disturb those of others, by either front."""

    CALLERS = 6
    # More at once would be refused by nobody; fewer meet more often.
    AT_ONCE = 10
    # What each call may answer when others race with it. A 5xx is never right.
    MAY_ANSWER = {
        "create": {201},
        "kill": {204, 404},
        "timeout": {204, 404, 409},
        "connect": {200, 201, 404, 409},
        "refresh": {204, 404, 409},
        "detail": {200, 404},
        "pause": {204, 404, 409},
    }
    # Of what is paused, these say that it is not there.
    WANT_IT_RUNNING = {"timeout", "refresh"}

    def __init__(self, fronts: tuple[str, str], seed: int) -> None:
        self.fronts, self.seed = fronts, seed
        self.turn = threading.Lock()
        self.made: dict[str, int] = {}
        self.living: list[str] = []
        self.answers: Counter = Counter()
        self.kills: Counter = Counter()
        self.wrong: list[str] = []

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(self.CALLERS) as pool:
            callers = [pool.submit(self.caller, random.Random(f"{self.seed}-{number}"), end) for number in range(self.CALLERS)]
            for caller in callers:
                caller.result(timeout=seconds + 90)

    def caller(self, chance: random.Random, end: float) -> None:
        while time.monotonic() < end and not self.wrong:
            front = chance.choice(self.fronts)
            with self.turn:
                some = chance.choice(self.living) if self.living else None
                room = len(self.living) < self.AT_ONCE
            calls = {"create": 4, "kill": 2, "timeout": 3, "connect": 3, "refresh": 1, "detail": 2, "pause": 2}
            what = chance.choices(list(calls), list(calls.values()))[0]
            if some is None or (what == "create" and room):
                self.create(front, chance.randrange(1, 8))
            elif what == "kill":
                self.by_both("kill", "DELETE", f"/sandboxes/{some}", some)
            elif what == "pause":
                self.by_both("pause", "POST", f"/sandboxes/{some}/pause", some)
            elif what == "timeout":
                # Short ones, so that an expiry is often under way when the next call comes.
                self.operate(what, front, "POST", f"/sandboxes/{some}/timeout", {"timeout": chance.randrange(0, 5)}, some)
            elif what == "connect":
                self.operate(what, front, "POST", f"/v2/sandboxes/{some}/connect", {"timeout": chance.randrange(1, 6)}, some)
            elif what == "refresh":
                self.operate(what, front, "POST", f"/sandboxes/{some}/refreshes", {"duration": 1}, some)
            else:
                self.operate("detail", front, "GET", f"/sandboxes/{some}", None, some)

    def by_both(self, what: str, method: str, path: str, sandbox_id: str) -> None:
        """Two that begin at once, one by each front."""
        with ThreadPoolExecutor(2) as pair:
            list(pair.map(lambda front: self.operate(what, front, method, path, None, sandbox_id), self.fronts))

    def create(self, front: str, seconds: int) -> None:
        status, body = self.operate("create", front, "POST", "/v2/sandboxes", {"templateID": "base", "timeout": seconds})
        if status == 201:
            with self.turn:
                self.made[body["sandboxID"]] = self.fronts.index(front)
                self.living.append(body["sandboxID"])

    def operate(self, what: str, front: str, method: str, path: str, body: dict | None, sandbox_id: str | None = None):
        status, said = ask(front, method, path, body)
        with self.turn:
            self.answers[what, status] += 1
            if status not in self.MAY_ANSWER[what]:
                self.wrong.append(f"{what} by front {self.fronts.index(front)} of {sandbox_id}: {status} {said}")
            if what == "kill" and status == 204:
                self.kills[sandbox_id] += 1
            # Only a kill or a 404 says that it is over for good.
            over = (what == "kill" and status == 204) or (status == 404 and what not in self.WANT_IT_RUNNING)
            if sandbox_id in self.living and over:
                self.living.remove(sandbox_id)
        return status, said


@pytest.mark.timeout(180 + RACE_SECONDS)
def test_both_agree_after_random_races(fronts, cluster):
    one, two, server, _ = fronts
    # Both have been used before they are weighed, and nothing of other tests is left.
    Races((one, two), RACE_SEED).run(2)
    for sandbox_id in listed(one, "paused") | listed(two, "paused"):
        assert ask(one, "DELETE", f"/sandboxes/{sandbox_id}")[0] == 204
    until("nothing is left of what was before", lambda: not (listed(one) | listed(two)), 30)
    last: list[str] = []

    def fits() -> bool:
        last[:] = Objects.of(server.data).differences(WARM + PARKED, set())
        return not last

    until("the host is at rest", fits, 30)
    before = Footprint.of(server)

    races = Races((one, two), RACE_SEED)
    races.run(RACE_SECONDS)
    story = f"seed {RACE_SEED}: {dict(races.answers)}"
    print(f"\n{story}")
    assert not races.wrong, (story, races.wrong[:5])
    # What it claims to test did happen: both made some, calls were too late, kills met kills, pauses met pauses.
    assert set(races.made.values()) == {0, 1}, story
    assert races.answers["pause", 204] and races.answers["pause", 409], story
    assert races.answers["kill", 204] and sum(n for (_, status), n in races.answers.items() if status == 404), story

    # The shortest refresh is 15 s; kills of half of them, by the front that did not make them, race with the other ends.
    for sandbox_id in sorted(listed(one) | listed(two))[::2]:
        front = (two, one)[races.made[sandbox_id]]
        assert ask(front, "DELETE", f"/sandboxes/{sandbox_id}")[0] in (204, 404), story
    # What is paused has no deadline.
    for sandbox_id in listed(one, "paused") | listed(two, "paused"):
        assert ask(two, "DELETE", f"/sandboxes/{sandbox_id}")[0] == 204, story
    until("both list the same, and in the end nothing", lambda: listed(one) == listed(two) == set(), 45)

    # Each has one row, which is dead by one of the two causes that there were.
    written = cluster.query("soulbox_1", "SELECT sandbox_id, state, cause FROM sandboxes").splitlines()
    found = {line.split("|")[0]: tuple(line.split("|")[1:]) for line in written}
    assert set(races.made) <= set(found), (story, set(races.made) - set(found))
    ends = Counter(found[sandbox_id] for sandbox_id in races.made)
    assert set(ends) == {("dead", "killed"), ("dead", "expired")}, (story, ends)
    for sandbox_id in races.made:
        for front in (one, two):
            assert ask(front, "GET", f"/sandboxes/{sandbox_id}")[0] == 404, (story, sandbox_id)
            assert ask(front, "DELETE", f"/sandboxes/{sandbox_id}")[0] == 404, (story, sandbox_id)
    try:
        until("the host holds what it held", fits, 30)
    except AssertionError:
        raise AssertionError(f"{story}, left: {last}") from None
    grown: list[str] = []

    def as_before() -> bool:
        grown[:] = Footprint.of(server).grown(before, CONNECTIONS)
        return not grown

    try:
        until("nothing has grown", as_before, 30)
    except AssertionError:
        raise AssertionError(f"{story}, grown: {grown}") from None


def test_a_front_that_dies_leaves_the_other_in_charge(fronts):
    one, two, server, _ = fronts
    made = Sandbox.create(timeout=5, **at(one))
    os.kill(server.front(), signal.SIGKILL)
    assert Sandbox.connect(made.sandbox_id, timeout=5, **at(two)).commands.run("echo on").stdout == "on\n"
    Sandbox.set_timeout(made.sandbox_id, 1, **at(two))
    until("the other ends it in time", lambda: not made.is_running(), 20)
    until("the first is back", server.answers, 30)
