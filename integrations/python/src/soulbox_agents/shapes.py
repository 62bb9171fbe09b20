"""Tool definitions, calls and results in the shapes of providers."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .messages import Picture, ToolCall, ToolResult
from .tools import Tool


def anthropic_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [{"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)} for tool in tools]


def openai_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}}
        for tool in tools
    ]


def of(call: Any) -> tuple[Callable[[Any], ToolCall], Callable[[ToolResult], Any]]:
    """How to read such a call and how to write its result."""
    if isinstance(call, ToolCall):
        return lambda same: same, lambda result: result
    if field(call, "function") is not None:
        return openai_call, openai_result
    if field(call, "type") == "tool_use":
        return anthropic_call, anthropic_result
    raise TypeError(f"neither a tool_use block nor a function call: {call!r}")


def field(value: Any, name: str, default: Any = None) -> Any:
    """Of a mapping or of an object: clients have both."""
    if isinstance(value, Mapping):
        return value.get(name, default)
    return getattr(value, name, default)


def anthropic_call(block: Any) -> ToolCall:
    return ToolCall.of(field(block, "id"), field(block, "name"), field(block, "input"))


def anthropic_result(result: ToolResult) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": result.text}]
    content += [anthropic_picture(picture) for picture in result.pictures]
    return {"type": "tool_result", "tool_use_id": result.call.id, "content": content, "is_error": result.failed}


def anthropic_picture(picture: Picture) -> dict[str, Any]:
    source = {"type": "base64", "media_type": picture.media_type, "data": base64.b64encode(picture.data).decode()}
    return {"type": "image", "source": source}


def openai_call(call: Any) -> ToolCall:
    function = field(call, "function")
    arguments = field(function, "arguments")
    # Some clients have parsed them already.
    text = arguments if isinstance(arguments, str) or arguments is None else json.dumps(arguments)
    return ToolCall.parse(field(call, "id") or "", field(function, "name") or "", text or "")


def openai_result(result: ToolResult) -> dict[str, Any]:
    """Text alone: these wires have no place for an image in a tool's result."""
    return {"role": "tool", "tool_call_id": result.call.id, "name": result.call.name, "content": result.text}


def openai_picture(picture: Picture) -> dict[str, Any]:
    url = f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
