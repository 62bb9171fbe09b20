"""Watching directories."""

import time

import pytest
from e2b import FileNotFoundException, FilesystemEventType, InvalidArgumentException, SandboxException


@pytest.fixture
def folder(sandbox, request):
    path = f"/home/user/watch-{request.node.name}"
    sandbox.files.make_dir(path)
    return path


def events(handle, wanted: set, within: float = 10) -> list:
    """All events until every wanted (name, type) has come."""
    seen = []
    deadline = time.monotonic() + within
    while not wanted <= {(event.name, event.type) for event in seen}:
        assert time.monotonic() < deadline, (wanted, seen)
        seen += handle.get_new_events()
        time.sleep(0.05)
    return seen


def test_envd_108_every_kind_of_event(sandbox, folder):
    sandbox.files.write(f"{folder}/old", "x")
    handle = sandbox.files.watch_dir(folder)
    sandbox.commands.run(f"cd {folder} && echo y >> old && chmod 600 old && touch new && mv old moved && rm new")
    kind = FilesystemEventType
    events(
        handle,
        {
            ("old", kind.WRITE),
            ("old", kind.CHMOD),
            ("new", kind.CREATE),
            ("old", kind.RENAME),
            ("moved", kind.CREATE),
            ("new", kind.REMOVE),
        },
    )
    handle.stop()


def test_envd_109_folders_below(sandbox, folder):
    sandbox.files.make_dir(f"{folder}/sub")
    handle = sandbox.files.watch_dir(folder, recursive=True)
    sandbox.files.write(f"{folder}/sub/file", "x")
    events(handle, {("sub/file", FilesystemEventType.WRITE)})
    sandbox.files.make_dir(f"{folder}/later")
    events(handle, {("later", FilesystemEventType.CREATE)})
    sandbox.files.write(f"{folder}/later/file", "x")
    events(handle, {("later/file", FilesystemEventType.WRITE)})
    handle.stop()


def test_envd_111_what_cannot_be_watched(sandbox, folder):
    with pytest.raises(FileNotFoundException):
        sandbox.files.watch_dir(f"{folder}/missing")
    sandbox.files.write(f"{folder}/file", "")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.watch_dir(f"{folder}/file")


def test_envd_114_a_stopped_watcher_is_gone(sandbox, folder):
    handle = sandbox.files.watch_dir(folder)
    assert handle.get_new_events() == []
    sandbox.files.write(f"{folder}/file", "x")
    events(handle, {("file", FilesystemEventType.CREATE)})
    assert handle.get_new_events() == []
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()
