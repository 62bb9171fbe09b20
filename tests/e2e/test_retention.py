"""What becomes of versions of a template that nobody uses any more, and of layers that nothing needs; and what must never go."""

import json
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import DATA, Server, run, until
from e2b import Sandbox
from test_builds import POOL, ask, begin, ended, layers, lines_of, requested


@pytest.fixture
def named(server):
    names = []

    def make() -> str:
        names.append(f"r-{uuid.uuid4().hex[:12]}")
        return names[-1]

    yield make
    for name in names:
        ask(server, "DELETE", f"/templates/{name}")


def built(server: Server, name: str, *commands: str) -> str:
    """The ID of a build of these commands."""
    path = requested(server, name)
    begin(server, path, *commands)
    assert ended(server, path)["status"] == "ready", status_of(server, path)
    return path.rsplit("/", 1)[1]


def status_of(server: Server, path: str) -> dict:
    return ask(server, "GET", f"{path}/status?logsOffset=0")[1]


def gc(*arguments: str) -> dict:
    done = run("template", "gc", "--data-dir", str(DATA), "--json", *arguments)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def collected(*arguments: str) -> set[str]:
    return set(gc(*arguments)["layers"])


def known(build: str) -> bool:
    return (POOL / "builds" / f"{build}.json").exists()


def layers_of(build: str) -> set[str]:
    return set(json.loads((POOL / "builds" / f"{build}.json").read_text())["layers"])


def again(server: Server, *flags: str) -> None:
    """A new start: old builds are looked for five seconds after it."""
    assert server.stop() == 0
    server.start(*flags)


def test_a_version_goes_when_nothing_uses_it_any_more(server, named):
    name, mark = named(), uuid.uuid4().hex
    first = f"echo {mark} > ~/mark"
    tagged = built(server, f"{name}:v1", first, "echo 1 > ~/version")
    replaced = built(server, name, first, "echo 2 > ~/version")
    sandbox = Sandbox.create(name, timeout=300)
    snapshot = sandbox.create_snapshot()
    newest = built(server, name, first, "echo 3 > ~/version")
    of_replaced = layers_of(replaced) - layers_of(newest) - layers_of(tagged)
    assert len(of_replaced) == 2, "its last step and what every build ends with"

    # Without a setting they stay for a month.
    again(server)
    time.sleep(8)
    assert known(replaced) and sandbox.commands.run("cat ~/version").stdout == "2\n"
    # A sandbox and a snapshot of it stand on it.
    again(server, "--keep-builds", "1s")
    time.sleep(8)
    assert known(replaced) and not of_replaced & collected("--older-than", "0", "--dry-run")
    sandbox.kill()
    again(server, "--keep-builds", "1s")
    time.sleep(8)
    assert known(replaced) and not of_replaced & collected("--older-than", "0")
    with Sandbox.create(snapshot.snapshot_id, timeout=60) as other:
        assert other.commands.run("cat ~/version").stdout == "2\n"
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)
    until("no sandbox is left", lambda: not Sandbox.list().next_items())
    again(server, "--keep-builds", "1s")
    until("it is forgotten", lambda: not known(replaced), 20)
    template = ask(server, "GET", f"/templates/aliases/{name}")[1]["templateID"]
    assert ask(server, "GET", f"/templates/{template}/builds/{replaced}/status")[0] == 400
    assert ask(server, "POST", "/v2/sandboxes", {"templateID": f"{name}:{replaced}"})[0] == 404
    assert ask(server, "POST", "/templates/tags", {"target": f"{name}:{replaced}", "tags": ["back"]})[0] == 404
    builds = [it["buildID"] for it in ask(server, "GET", f"/templates/{template}")[1]["builds"]]
    assert set(builds) == {tagged, newest}

    # A look deletes nothing.
    before = layers()
    assert of_replaced <= collected("--older-than", "0", "--dry-run") and layers() == before
    assert of_replaced <= collected("--older-than", "0") and not layers() & of_replaced
    for tag, version in (("v1", "1"), ("default", "3")):
        with Sandbox.create(f"{name}:{tag}", timeout=60) as sandbox:
            assert sandbox.commands.run("cat ~/mark ~/version").stdout == f"{mark}\n{version}\n"
    # What the versions that are there share is still the cache of the next one.
    path = requested(server, name)
    begin(server, path, first, "echo 4 > ~/version")
    assert ended(server, path)["status"] == "ready"
    cached = [line.startswith("CACHED ") for line in lines_of(server, path) if " RUN " in line]
    assert cached == [True, False], lines_of(server, path)

    # Nobody has to wait for the server's next look: the same goes by hand, and is told before.
    own = layers_of(newest) - layers_of(tagged) - layers_of(path.rsplit("/", 1)[1])
    time.sleep(1.1)
    told = gc("--older-than", "0", "--dry-run")
    unused = {it["buildID"]: it for it in told["builds"]}
    assert newest in unused and tagged not in unused and not told["deleted"], told
    assert unused[newest]["templateID"] == template and unused[newest]["bytes"] >= 4096 and own <= set(told["layers"])
    assert time.time() - 60 < unused[newest]["unusedSince"] / 1000 < time.time() - 1
    assert known(newest) and own <= layers()
    done = gc("--older-than", "0")
    assert done == told | {"deleted": True}
    assert not known(newest) and not own & layers()
    gone = f"/templates/{template}/builds/{newest}/status"
    until("the server knows it no more", lambda: ask(server, "GET", gone)[0] == 400, 5)


def test_a_tag_that_was_taken_away_leaves_a_version_for_as_long(server, named):
    """The time counts from then, not from the build."""
    name = named()
    old = built(server, f"{name}:kept", "true 1")
    built(server, name, "true 2")
    time.sleep(9)
    assert ask(server, "DELETE", "/templates/tags", {"name": name, "tags": ["kept"]})[0] == 204
    again(server, "--keep-builds", "15s")
    time.sleep(7)
    assert known(old)
    assert ask(server, "POST", "/templates/tags", {"target": f"{name}:{old}", "tags": ["back"]})[0] == 201
    with Sandbox.create(f"{name}:back", timeout=60) as sandbox:
        assert sandbox.commands.run("true").exit_code == 0


def test_nothing_in_use_is_collected(server, named):
    """Builds that find layers which nobody else needs, and creates, while layers are collected all the time."""
    mark, over = uuid.uuid4().hex, threading.Event()
    failures: list[str] = []

    def collect() -> None:
        while not over.is_set():
            try:
                collected("--older-than", "0")
            except AssertionError as error:
                failures.append(str(error))

    def build(number: int) -> None:
        for step in range(4):
            # The second half of a failed build's steps, its cache, is nobody's until the next one has found it.
            path = requested(server, names[number])
            steps = [f"echo {mark} {number} {one} > ~/{one}" for one in range(step + 1)]
            begin(server, path, *steps, "false" if step % 2 else "true")
            outcome = ended(server, path)
            message = (outcome.get("reason") or {}).get("message", "")
            expected = "error" if step % 2 else "ready"
            if outcome["status"] != expected or (step % 2 and "exit status 1" not in message):
                failures.append(f"{number} {step}: {outcome}")
            elif not step % 2:
                with Sandbox.create(names[number], timeout=60) as sandbox:
                    said = sandbox.commands.run(f"cat ~/{step}").stdout
                    if said != f"{mark} {number} {step}\n":
                        failures.append(said)

    names = [named() for _ in range(4)]
    with ThreadPoolExecutor(6) as pool:
        collecting = [pool.submit(collect) for _ in range(2)]
        building = [pool.submit(build, number) for number in range(len(names))]
        try:
            for one in building:
                one.result()
        finally:
            over.set()
        for one in collecting:
            one.result()
    assert failures == []


def test_a_collection_that_is_broken_off_leaves_whole_layers(server, named):
    """The server is killed at some moment of it, several times; whatever is still there is whole, and the next collection does the rest."""
    mark = uuid.uuid4().hex
    steps = [f"echo {mark} {number} > ~/{number}; seq 2000 | xargs touch" for number in range(12)]
    chance = random.Random(1)
    for _ in range(3):
        name = named()
        built(server, name, *steps)
        assert ask(server, "DELETE", f"/templates/{name}")[0] == 204
        doomed = collected("--older-than", "0", "--dry-run")
        assert len(doomed) >= len(steps)
        with ThreadPoolExecutor(1) as pool:
            collecting = pool.submit(run, "template", "gc", "--data-dir", str(DATA), "--older-than", "0")
            time.sleep(chance.uniform(0.02, 0.15))
            server.kill()
            collecting.result()
        server.start()
        # Of what is left over the same build comes out as it was.
        name = named()
        built(server, name, *steps)
        with Sandbox.create(name, timeout=60) as sandbox:
            told = sandbox.commands.run("cat $(seq -f ~/%g 0 11) && ls | wc -l").stdout.splitlines()
        assert told[:-1] == [f"{mark} {number}" for number in range(12)] and int(told[-1]) >= 2000, told
        assert ask(server, "DELETE", f"/templates/{name}")[0] == 204
        collected("--older-than", "0")
        assert collected("--older-than", "0", "--dry-run") == set()
