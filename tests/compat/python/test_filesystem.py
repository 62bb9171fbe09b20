"""The filesystem service past what the SDKs show: every kind of entry, odd paths, watches and their ends."""

import asyncio
import time

import pytest
from conftest import TEMPLATE
from e2b import AsyncSandbox, AuthenticationException, FileType, FilesystemEventType, InvalidArgumentException
from generation import OLD
from wire import Wire, until

STAT, LIST_DIR = "filesystem.Filesystem/Stat", "filesystem.Filesystem/ListDir"
CREATE, EVENTS, REMOVE = (f"filesystem.Filesystem/{name}" for name in ("CreateWatcher", "GetWatcherEvents", "RemoveWatcher"))
WATCH = "filesystem.Filesystem/WatchDir"


@pytest.fixture(scope="module")
def wire(sandbox):
    return Wire.to(sandbox)


@pytest.fixture
def folder(sandbox, request):
    path = f"/home/user/fs-{request.node.name.removeprefix('test_')[:20]}"
    sandbox.files.make_dir(path)
    return path


def test_envd_095_depth_zero_is_one(wire, sandbox, folder):
    sandbox.commands.run(f"mkdir -p {folder}/a/b && touch {folder}/c")
    by_depth = [wire.ok(LIST_DIR, {"path": folder, "depth": depth})["entries"] for depth in (0, 1)]
    assert by_depth[0] == by_depth[1] and [entry["name"] for entry in by_depth[0]] == ["a", "c"]
    for depth in (0, -1):
        with pytest.raises(InvalidArgumentException):
            sandbox.files.list(folder, depth=depth)


def test_envd_097_through_a_link(wire, sandbox, folder):
    sandbox.commands.run(f"cd {folder} && mkdir -p real/sub/deep && touch real/file && ln -s real link && ln -s ../real real/nested")
    paths = [entry.path for entry in sandbox.files.list(f"{folder}/link", depth=3)]
    below = [path.removeprefix(f"{folder}/link/") for path in paths]
    assert below == ["file", "nested", "sub", "sub/deep"]


def test_envd_098_a_loop_of_links(wire, sandbox, folder):
    sandbox.commands.run(f"cd {folder} && ln -s b a && ln -s a b")
    assert wire.refused(LIST_DIR, {"path": f"{folder}/a"}) == "failed_precondition"


def test_envd_100_kinds_of_entries(wire, sandbox, folder):
    sandbox.commands.run(f"cd {folder} && mkdir -m 755 dir && echo hi > file && ln -s file link && ln -s gone broken && mkfifo pipe")
    info = sandbox.files.get_info(f"{folder}/dir")
    assert (info.mode, info.permissions, info.type) == (0o755, "drwxr-xr-x", FileType.DIR)
    assert sandbox.files.get_info("/tmp").permissions == "dtrwxrwxrwx"
    link = wire.ok(STAT, {"path": f"{folder}/link"})["entry"]
    assert (link["permissions"], link["type"]) == ("Lrwxrwxrwx", "FILE_TYPE_FILE")
    assert (link["symlinkTarget"], link["isSymlink"]) == (f"{folder}/file", True)
    broken = wire.ok(STAT, {"path": f"{folder}/broken"})["entry"]
    assert "type" not in broken and broken["symlinkTarget"] == f"{folder}/broken"
    assert sandbox.files.get_info(f"{folder}/broken").path == f"{folder}/broken"
    assert wire.ok(STAT, {"path": f"{folder}/pipe"})["entry"]["permissions"].startswith("p")
    assert wire.ok(STAT, {"path": "/dev/null"})["entry"]["permissions"].startswith("Dc")
    names = [entry.name for entry in sandbox.files.list(folder)]
    assert names == ["dir", "file", "link"], "what has no type is not shown"


def test_sdk_09_a_linked_directory(sandbox, folder):
    sandbox.commands.run(f"cd {folder} && mkdir real && ln -s real link")
    # The older package shows what a link leads to.
    link = "dir" if OLD else "symlink"
    assert {entry.name: entry.type.value for entry in sandbox.files.list(folder)} == {"link": link, "real": "dir"}


def test_envd_106_the_empty_path_is_the_working_directory(wire):
    assert wire.ok(STAT, {"path": ""})["entry"]["path"] == "/home/user"
    assert wire.ok(STAT, {"path": "."})["entry"]["path"] == "/home/user"


def watched(wire, watcher: str, wanted: set, within: float = 10) -> list[dict]:
    seen: list[dict] = []

    def all_there() -> bool:
        seen.extend(wire.ok(EVENTS, {"watcherId": watcher}).get("events", []))
        return wanted <= {(event["name"], event["type"].removeprefix("EVENT_TYPE_")) for event in seen}

    until(f"{wanted}", all_there, within)
    return seen


def test_envd_110_entries_with_events(wire, sandbox, folder):
    watcher = wire.ok(CREATE, {"path": folder, "includeEntry": True})["watcherId"]
    sandbox.files.write(f"{folder}/file", "x")
    event = next(e for e in watched(wire, watcher, {("file", "WRITE")}) if e["type"] == "EVENT_TYPE_WRITE")
    assert (event["entry"]["path"], event["entry"]["type"]) == (f"{folder}/file", "FILE_TYPE_FILE")
    sandbox.commands.run(f"cd {folder} && echo y > other && rm file && mv other file")
    seen = watched(wire, watcher, {("file", "REMOVE"), ("other", "RENAME"), ("file", "CREATE")})
    for event in seen:
        if event["type"] in ("EVENT_TYPE_REMOVE", "EVENT_TYPE_RENAME"):
            assert "entry" not in event, event
    wire.ok(REMOVE, {"watcherId": watcher})


@pytest.mark.asyncio
async def test_envd_113_a_stopped_watch_ends_without_an_error():
    async with await AsyncSandbox.create(TEMPLATE, timeout=120) as sandbox:
        ends: list = []
        seen: list = []
        handle = await sandbox.files.watch_dir("/tmp", on_event=seen.append, on_exit=ends.append, timeout=0)
        await sandbox.files.write("/tmp/file", "x")
        for _ in range(100):
            if seen:
                break
            await asyncio.sleep(0.05)
        assert any(event.type == FilesystemEventType.CREATE for event in seen)
        await handle.stop()
        assert [end for end in ends if end is not None] == []


def test_envd_113_a_thousand_watches_are_given_back(wire, sandbox, folder):
    """More than the kernel lets one user have at once, so a leak ends in an error."""
    for _ in range(20):
        ids = [wire.ok(CREATE, {"path": folder})["watcherId"] for _ in range(50)]
        for watcher in ids:
            wire.ok(REMOVE, {"watcherId": watcher})
    streams = [wire.stream(WATCH, {"path": folder}) for _ in range(20)]
    for stream in streams:
        assert "start" in stream.next()
        stream.close()
    assert wire.ok(CREATE, {"path": folder})["watcherId"]


def test_envd_116_ten_thousand_events(wire, sandbox, folder):
    watcher = wire.ok(CREATE, {"path": folder})["watcherId"]
    sandbox.commands.run(f"cd {folder} && for i in $(seq 10000); do : > f$i; done", timeout=60)
    seen: set[str] = set()

    def complete() -> bool:
        answer = wire.call(EVENTS, {"watcherId": watcher})
        if answer.status_code != 200:
            assert answer.json()["code"] == "internal", answer.text
            return True
        events = answer.json().get("events", [])
        seen.update(event["name"] for event in events if event["type"] == "EVENT_TYPE_CREATE")
        return len(seen) == 10_000

    until("all events, or an error that says so", complete, 30)
    assert sandbox.commands.run("echo healthy").stdout == "healthy\n"
    assert sandbox.files.list(folder)[0].name == "f1"
    wire.ok(REMOVE, {"watcherId": watcher})


def test_ci_100_changes_of_mode_owner_and_time(wire, sandbox, folder):
    sandbox.files.write(f"{folder}/file", "x")
    watcher = wire.ok(CREATE, {"path": folder})["watcherId"]
    stream = wire.stream(WATCH, {"path": folder})
    assert "start" in stream.next()
    for change in ("chmod 600 file", "sudo chown root file", "sudo touch -d 2020-01-01 file"):
        sandbox.commands.run(f"cd {folder} && {change}")
        event = stream.next()
        assert event["filesystem"] == {"name": "file", "type": "EVENT_TYPE_CHMOD"}, change
        assert watched(wire, watcher, {("file", "CHMOD")})
    sandbox.commands.run(f"cd {folder} && for i in $(seq 1000); do : > burst$i; done")
    names = {f"burst{n}" for n in range(1, 1001)}
    seen = watched(wire, watcher, {(name, "CREATE") for name in names})
    assert len([event for event in seen if event["type"] == "EVENT_TYPE_CREATE"]) == 1000, "each once"
    assert wire.ok(EVENTS, {"watcherId": watcher}) == {}
    stream.close()
    wire.ok(REMOVE, {"watcherId": watcher})


def test_ci_101_owners_of_files(sandbox, folder):
    for user in ("user", "root"):
        sandbox.files.write(f"{folder}/{user}", "x", user=user)
        info = sandbox.files.get_info(f"{folder}/{user}")
        assert (info.owner, info.group) == (user, user)
    with pytest.raises(AuthenticationException):
        sandbox.files.write(f"{folder}/x", "x", user="nobody-known")
    with pytest.raises(AuthenticationException):
        sandbox.files.list(folder, user="nobody-known")


def test_directories_made_quickly_are_all_watched(wire, sandbox, folder):
    watcher = wire.ok(CREATE, {"path": folder, "recursive": True})["watcherId"]
    sandbox.commands.run(f"cd {folder} && for i in $(seq 100); do mkdir -p d$i/a/b && : > d$i/a/b/file; done")
    watched(wire, watcher, {(f"d{n}/a/b/file", "CREATE") for n in range(1, 101)})
    time.sleep(0.2)
    sandbox.commands.run(f"for i in $(seq 100); do echo x > {folder}/d$i/a/b/file; done")
    watched(wire, watcher, {(f"d{n}/a/b/file", "WRITE") for n in range(1, 101)})
    wire.ok(REMOVE, {"watcherId": watcher})


def test_no_two_files_have_one_number(sandbox, folder):
    """By device and number programs know whether two names are one file: `cp` refuses and `mv` deletes then."""
    sandbox.commands.run(f"cd {folder} && seq 500 | xargs touch && cp /etc/passwd /etc/bash.bashrc .")
    twice = sandbox.commands.run("find / -xdev -type f -links 1 -printf '%i\\n' | sort | uniq -d | wc -l", user="root", timeout=120)
    assert twice.stdout.strip() == "0"
