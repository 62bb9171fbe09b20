"""LangChain's tools and AutoGen's executor, used by those frameworks' own agents."""

import asyncio
import time

import pytest
from autogen_agentchat.agents import CodeExecutorAgent
from autogen_agentchat.messages import TextMessage
from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock, CodeExecutor
from autogen_core.tools import BaseTool
from autogen_ext.tools.code_execution import PythonCodeExecutionTool
from conftest import PNG, SINE, TEMPLATE
from e2b_code_interpreter import AsyncSandbox, Sandbox
from langchain_core.messages import ToolMessage
from soulbox_agents.autogen import SoulBoxCodeExecutor
from soulbox_agents.langchain import SandboxLost, langchain_tools

pytestmark = pytest.mark.usefixtures("nothing_left")


def block(code: str, language: str = "python") -> CodeBlock:
    return CodeBlock(code=code, language=language)


def test_ci_090_a_block_and_its_exit_code():
    async def main() -> None:
        token = CancellationToken()
        async with SoulBoxCodeExecutor() as executor:
            result = await executor.execute_code_blocks([block("kept = 40"), block("print(kept + 2)")], token)
            assert (result.exit_code, result.output) == (0, "(no output)\n42")
            result = await executor.execute_code_blocks([block("echo shell; exit 3", "bash"), block("print('never')")], token)
            assert (result.exit_code, result.output) == (3, "shell\nexit code 3")
            result = await executor.execute_code_blocks([block("1 / 0")], token)
            assert (result.exit_code, result.output) == (1, "ZeroDivisionError: division by zero (line 1: 1 / 0)")
            result = await executor.execute_code_blocks([block("x", "cobol")], token)
            assert result.exit_code == 1 and "no code in 'cobol' can be run" in result.output
            assert (await executor.execute_code_blocks([block(SINE)], token)).pictures[0].data.startswith(PNG)
            await executor.restart()
            assert "NameError" in (await executor.execute_code_blocks([block("kept")], token)).output

    asyncio.run(main())


def test_ci_090_an_agent_of_autogen_runs_a_block():
    async def main() -> None:
        async with SoulBoxCodeExecutor() as executor:
            agent = CodeExecutorAgent("runner", executor)
            message = TextMessage(source="user", content="```python\nprint(6 * 7)\n```")
            assert (await agent.on_messages([message], CancellationToken())).chat_message.content.strip() == "42"
            failing = TextMessage(source="user", content="```sh\necho before\nexit 5\n```")
            answer = (await agent.on_messages([failing], CancellationToken())).chat_message.content
            assert "POSIX exit code: 5" in answer and "before" in answer
            tool: BaseTool = PythonCodeExecutionTool(executor)
            result = await tool.run_json({"code": "print(6 * 7)"}, CancellationToken())
            assert (result.success, result.output) == (True, "42")

    asyncio.run(main())


def test_an_executor_that_is_cancelled():
    async def main() -> None:
        async with SoulBoxCodeExecutor() as executor:
            token = CancellationToken()
            assert (await executor.execute_code_blocks([block("kept = 1")], token)).exit_code == 0
            asyncio.get_running_loop().call_later(1, token.cancel)
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await executor.execute_code_blocks([block("while True: pass")], token)
            assert time.monotonic() - began < 20
            assert (await executor.execute_code_blocks([block("print(kept)")], CancellationToken())).output == "1"

    asyncio.run(main())


def test_an_executor_whose_sandbox_is_gone():
    async def main() -> None:
        async with SoulBoxCodeExecutor() as executor:
            await executor.sandbox.kill()
            with pytest.raises(Exception, match=r"gone|not found|doesn't exist"):
                await executor.execute_code_blocks([block("1")], CancellationToken())
        with pytest.raises(RuntimeError, match="not started"):
            await executor.execute_code_blocks([block("1")], CancellationToken())

    asyncio.run(main())


def test_an_executor_that_is_saved():
    dumped = SoulBoxCodeExecutor(template="mine", timeout=5).dump_component()
    assert dumped.config == {"template": "mine", "timeout": 5, "idle": 300}
    assert dumped.provider == "soulbox_agents.autogen.SoulBoxCodeExecutor"
    assert isinstance(CodeExecutor.load_component(dumped), SoulBoxCodeExecutor)


def test_tools_of_langchain():
    with Sandbox.create(TEMPLATE, timeout=120) as sandbox:
        tools = {tool.name: tool for tool in langchain_tools(sandbox, sees_pictures=True)}
        call = {"type": "tool_call", "id": "1", "name": "run_code", "args": {"code": SINE}}
        message = tools["run_code"].invoke(call)
        assert isinstance(message, ToolMessage) and message.tool_call_id == "1"
        assert message.artifact.pictures[0].data.startswith(PNG) and message.content[1]["type"] == "image_url"
        assert tools["run_code"].invoke({"code": "1 / 0"}).startswith("ZeroDivisionError")
        assert tools["write_file"].invoke({"path": "a.txt", "content": "b"}) == "wrote 1 bytes to a.txt"
        assert tools["list_files"].invoke({}).startswith("name,bytes")
        assert asyncio.run(tools["run_command"].ainvoke({"command": "cat a.txt"})) == "b"
        sandbox.kill()
        with pytest.raises(SandboxLost, match="the sandbox is gone"):
            tools["run_code"].invoke({"code": "1"})


def test_tools_of_langchain_with_an_event_loop():
    async def main() -> None:
        async with await AsyncSandbox.create(TEMPLATE, timeout=120) as sandbox:
            (run_code, *_) = langchain_tools(sandbox)
            assert await run_code.ainvoke({"code": "6 * 7"}) == "42"
            with pytest.raises(NotImplementedError):
                run_code.invoke({"code": "1"})

    asyncio.run(main())
