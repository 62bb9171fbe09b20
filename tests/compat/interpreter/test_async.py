"""The asynchronous package: what differs from the other is how it waits, so this is a little of everything."""

import asyncio
import time

import pytest
import pytest_asyncio
from conftest import TEMPLATE
from e2b import NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def sandbox():
    made = await AsyncSandbox.create(TEMPLATE, timeout=300)
    yield made
    await made.kill()


async def test_results_callbacks_and_contexts(sandbox):
    heard = []

    async def hear(message):
        heard.append(message.line)

    shown = []
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay(1)\n6*7"
    execution = await sandbox.run_code(code, on_stdout=hear, on_stderr=hear, on_result=shown.append)
    assert (execution.text, heard, len(shown)) == ("42", ["out\n", "err\n"], 2)
    failures = []
    execution = await sandbox.run_code("1/0", on_error=failures.append)
    assert failures[0].name == execution.error.name == "ZeroDivisionError"
    context = await sandbox.create_code_context(language="js", cwd="/tmp")
    assert (await sandbox.run_code("process.cwd()", context=context)).text == "/tmp"
    assert (await sandbox.list_code_contexts())[-1].id == context.id
    await sandbox.restart_code_context(context)
    await sandbox.remove_code_context(context)
    with pytest.raises(NotFoundException):
        await sandbox.run_code("1", context=context)


async def test_a_timeout_and_many_at_once(sandbox):
    await sandbox.run_code("kept = 5")
    with pytest.raises(TimeoutException):
        await sandbox.run_code("import time; time.sleep(300)", timeout=2)
    assert (await sandbox.run_code("kept")).text == "5"
    contexts = await asyncio.gather(*(sandbox.create_code_context() for _ in range(3)))
    start = time.monotonic()
    codes = [f"import time; time.sleep(2); {n}" for n in range(3)]
    executions = await asyncio.gather(*(sandbox.run_code(code, context=each) for code, each in zip(codes, contexts)))
    assert [each.text for each in executions] == ["0", "1", "2"]
    assert time.monotonic() - start < 6, "they ran beside each other"
