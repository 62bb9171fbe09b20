"""What takes a minute or more, all at once, so that the suite waits for it once."""

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from conftest import TEMPLATE
from e2b import AsyncSandbox, Sandbox, TimeoutException
from wire import Wire

pytestmark = pytest.mark.timeout(240)


def seventy_seconds(sandbox: Sandbox) -> str:
    return sandbox.commands.run("sleep 70; echo done", timeout=0).stdout


def abandoned(sandbox: Sandbox) -> list[bool]:
    """Whether a background command runs after 55 and after 65 seconds, its client gone."""
    handle = sandbox.commands.run("exec sleep 300", background=True)
    handle.disconnect()
    runs = []
    for pause in (55, 10):
        time.sleep(pause)
        runs.append(any(process.pid == handle.pid for process in sandbox.commands.list()))
    return runs


def silent(sandbox: Sandbox):
    """A silent program of 130 seconds, followed with the interval that the SDKs send."""
    wire = Wire.to(sandbox)
    wire.client.timeout = 200
    return wire.run("sleep 130", headers={"Keepalive-Ping-Interval": "50"}).outcome()


def unasked(sandbox: Sandbox):
    wire = Wire.to(sandbox)
    wire.client.timeout = 200
    return wire.run("sleep 65").outcome()


def watched(sandbox: Sandbox) -> tuple[float, object, bool]:
    """How long a watch with the default timeout lasts, what it ends with, and whether one without outlives it."""

    async def watch():
        same = await AsyncSandbox.connect(sandbox.sandbox_id)
        ended, seen = asyncio.Event(), asyncio.Event()
        ends: list = []

        def exited(error):
            ends.append(error)
            ended.set()

        began = time.monotonic()
        await same.files.make_dir("/tmp/watched")
        await same.files.watch_dir("/tmp/watched", on_event=lambda _: None, on_exit=exited)
        forever = await same.files.watch_dir("/tmp/watched", on_event=lambda _: seen.set(), timeout=0)
        await asyncio.wait_for(ended.wait(), 90)
        took = time.monotonic() - began
        await same.files.write("/tmp/watched/file", "x")
        await asyncio.wait_for(seen.wait(), 10)
        await forever.stop()
        return took, ends[0], True

    return asyncio.run(watch())


@pytest.fixture(scope="module")
def waiting():
    work = (seventy_seconds, abandoned, silent, unasked, watched)
    with Sandbox.create(TEMPLATE, timeout=400) as sandbox, ThreadPoolExecutor(len(work)) as pool:
        yield {each.__name__: pool.submit(each, sandbox) for each in work}


def test_envd_058_no_timeout_is_no_timeout(waiting: dict[str, Future]):
    assert waiting["seventy_seconds"].result(120) == "done\n"


def test_envd_059_the_default_timeout_holds_without_a_client(waiting):
    assert waiting["abandoned"].result(120) == [True, False]


def test_envd_112_a_watch_lasts_a_minute(waiting):
    took, end, other_lived = waiting["watched"].result(120)
    assert 55 < took < 75 and isinstance(end, TimeoutException) and other_lived


def test_no_keepalive_within_a_minute_unless_asked(waiting):
    assert waiting["unasked"].result(120).keepalives == 0


def test_ci_106_a_silent_command_is_kept_alive(waiting):
    outcome = waiting["silent"].result(200)
    assert outcome.keepalives == 2 and outcome.end["status"] == "exit status 0"
