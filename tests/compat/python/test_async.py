"""The async half of the package: the same server, another client stack."""

import asyncio

import pytest
from conftest import TEMPLATE
from e2b import AsyncSandbox, CommandExitException, FileNotFoundException, SandboxNotFoundException, TimeoutException

pytestmark = pytest.mark.asyncio


async def test_a_sandbox_from_create_to_kill():
    sandbox = await AsyncSandbox.create(TEMPLATE, timeout=120, envs={"A": "1"}, metadata={"kind": "async"})
    try:
        assert await sandbox.is_running()
        assert (await sandbox.commands.run("echo $A")).stdout == "1\n"
        await sandbox.files.write("/tmp/x/y", "text")
        assert await sandbox.files.read("/tmp/x/y") == "text"
        assert [entry.name for entry in await sandbox.files.list("/tmp/x")] == ["y"]
        with pytest.raises(FileNotFoundException):
            await sandbox.files.read("/tmp/missing")
        with pytest.raises(CommandExitException):
            await sandbox.commands.run("exit 4")
        assert (await sandbox.get_info()).metadata == {"kind": "async"}
        again = await AsyncSandbox.connect(sandbox.sandbox_id)
        assert await again.files.read("/tmp/x/y") == "text"
    finally:
        assert await sandbox.kill()
    assert not await sandbox.is_running()
    with pytest.raises(SandboxNotFoundException):
        await sandbox.get_info()


async def test_many_commands_on_one_connection():
    async with await AsyncSandbox.create(TEMPLATE, timeout=120) as sandbox:
        results = await asyncio.gather(*(sandbox.commands.run(f"sleep 0.3; echo {n}") for n in range(100)))
        assert [result.stdout for result in results] == [f"{n}\n" for n in range(100)]


async def test_input_output_and_time():
    async with await AsyncSandbox.create(TEMPLATE, timeout=120) as sandbox:
        pieces: list[str] = []
        handle = await sandbox.commands.run("cat", background=True, stdin=True, on_stdout=pieces.append)
        await sandbox.commands.send_stdin(handle.pid, "one\n")
        await sandbox.commands.close_stdin(handle.pid)
        assert (await handle.wait()).stdout == "one\n" and "".join(pieces) == "one\n"
        with pytest.raises(TimeoutException):
            await sandbox.commands.run("sleep 10", timeout=1)
        handle = await sandbox.commands.run("sleep 100", background=True)
        assert await handle.kill()


async def test_many_sandboxes_at_once():
    made = await asyncio.gather(*(AsyncSandbox.create(TEMPLATE, timeout=120) for _ in range(10)))
    assert len({sandbox.sandbox_id for sandbox in made}) == 10
    assert all(await asyncio.gather(*(sandbox.is_running() for sandbox in made)))
    assert all(await asyncio.gather(*(sandbox.kill() for sandbox in made)))
