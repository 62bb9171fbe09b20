"""Tools for LangChain and LangGraph."""

from collections.abc import Callable, Sequence
from typing import Any

from e2b_code_interpreter import AsyncSandbox, Sandbox
from langchain_core.tools import BaseTool, StructuredTool

from .events import Event
from .messages import ToolCall, ToolResult
from .shapes import openai_picture
from .toolbox import AsyncToolbox, Toolbox
from .tools import TOOLS, Settings, Tool


def langchain_tools(
    sandbox: Sandbox | AsyncSandbox,
    *,
    settings: Settings | None = None,
    tools: Sequence[Tool] = TOOLS,
    sees_pictures: bool = False,
    on_event: Callable[[Event], Any] = lambda event: None,
) -> list[BaseTool]:
    """The tools of this sandbox. With a `Sandbox` they serve both kinds of agents, with an `AsyncSandbox` only those that are awaited.

    The artifact of each result is a `ToolResult`, whose `pictures` are the charts that code has shown. What the code did wrong is told to
    the model; a sandbox that is gone ends the agent with `SandboxLost`.
    """
    if isinstance(sandbox, AsyncSandbox):
        box = AsyncToolbox(sandbox, settings=settings, tools=tools, on_event=on_event)
        return [_awaited(box, tool, sees_pictures) for tool in tools]
    box = Toolbox(sandbox, settings=settings, tools=tools, on_event=on_event)
    return [_called(box, tool, sees_pictures) for tool in tools]


class SandboxLost(RuntimeError):
    pass


def _called(box: Toolbox, tool: Tool, sees_pictures: bool) -> BaseTool:
    def run(**arguments: Any) -> tuple[Any, ToolResult]:
        return _told(box.run(ToolCall("", tool.name, arguments)), sees_pictures)

    # Without a coroutine of its own a tool is run in a thread by agents that are awaited.
    return StructuredTool(
        name=tool.name, description=tool.description, args_schema=dict(tool.parameters), func=run, response_format="content_and_artifact"
    )


def _awaited(box: AsyncToolbox, tool: Tool, sees_pictures: bool) -> BaseTool:
    async def run(**arguments: Any) -> tuple[Any, ToolResult]:
        return _told(await box.run(ToolCall("", tool.name, arguments)), sees_pictures)

    return StructuredTool(
        name=tool.name,
        description=tool.description,
        args_schema=dict(tool.parameters),
        coroutine=run,
        response_format="content_and_artifact",
    )


def _told(result: ToolResult, sees_pictures: bool) -> tuple[Any, ToolResult]:
    if result.lost:
        raise SandboxLost(result.text)
    if not (sees_pictures and result.pictures):
        return result.text, result
    return [{"type": "text", "text": result.text}, *map(openai_picture, result.pictures)], result
