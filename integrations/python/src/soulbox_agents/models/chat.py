"""Chat completions in OpenAI's shape: Groq, Together, Fireworks, OpenAI and compatible servers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .. import shapes
from ..messages import Assistant, Message, Results, ToolCall, Usage, User
from ..model import Reply, StreamCut
from ..tools import Tool


class ChatClient(Protocol):
    """What `openai`, `groq`, `together` and `fireworks` have in common, in both their kinds."""

    @property
    def chat(self) -> Any: ...


class ChatModel:
    """Over a client that has `chat.completions.create`. `options` go into each request, say `temperature`."""

    def __init__(self, client: ChatClient, model: str, *, sees_pictures: bool = False, **options: Any) -> None:
        # The conversation retries, where it is seen and bounded by its limits.
        with_options = getattr(client, "with_options", None)
        self.client: ChatClient = with_options(max_retries=0) if with_options else client
        self.name = model
        self.sees_pictures = sees_pictures
        self.options = options

    @property
    def secrets(self) -> Sequence[str]:
        key = getattr(self.client, "api_key", None)
        return [key] if isinstance(key, str) and key else []

    def open(self, system: str, messages: Sequence[Message], tools: Sequence[Tool]) -> Any:
        request: dict[str, Any] = self.options | {
            "model": self.name,
            "messages": written(system, messages, self.sees_pictures),
            "stream": True,
            # Some of these servers tell what a stream cost only when they are asked, and not all clients have a name for that.
            "extra_body": {"stream_options": {"include_usage": True}} | self.options.get("extra_body", {}),
        }
        if tools:
            request["tools"] = shapes.openai_tools(tools)
        return self.client.chat.completions.create(**request)

    def assembler(self) -> "ChatAssembler":
        return ChatAssembler()


def written(
    system: str,
    messages: Sequence[Message],
    sees_pictures: bool,
    results: Callable[[Results, bool], list[dict[str, Any]]] | None = None,
) -> list[dict[str, Any]]:
    """A conversation as chat messages."""
    said: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        match message:
            case User(text, pictures):
                said.append({"role": "user", "content": _content(text, pictures if sees_pictures else ())})
            case Assistant(text, calls):
                turn: dict[str, Any] = {"role": "assistant", "content": text}
                if calls:
                    turn["tool_calls"] = [_call(call) for call in calls]
                said.append(turn)
            case Results():
                said += (results or _results)(message, sees_pictures)
    return said


def _results(message: Results, sees_pictures: bool) -> list[dict[str, Any]]:
    said = [shapes.openai_result(result) for result in message.results]
    seen = [picture for result in message.results for picture in result.pictures]
    if seen and sees_pictures:
        said.append({"role": "user", "content": _content("The images that the code has shown:", seen)})
    return said


def _content(text: str, pictures: Sequence[Any]) -> Any:
    return [{"type": "text", "text": text}, *map(shapes.openai_picture, pictures)] if pictures else text


def _call(call: ToolCall) -> dict[str, Any]:
    # Arguments that were no JSON go back as none: providers refuse such a history.
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))}}


@dataclass
class _Call:
    id: str
    name: str = ""
    pieces: list[str] = field(default_factory=list[str])


class ChatAssembler:
    """Of chunks that are objects of a client or plain dicts."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._usage: Usage | None = None
        self._stop: str | None = None

    def feed(self, chunk: Any) -> str:
        usage = shapes.field(chunk, "usage") or shapes.field(shapes.field(chunk, "x_groq"), "usage")
        if usage:
            self._usage = Usage(shapes.field(usage, "prompt_tokens") or 0, shapes.field(usage, "completion_tokens") or 0)
        said = ""
        for choice in shapes.field(chunk, "choices") or ():
            if shapes.field(choice, "index") or 0:
                continue
            self._stop = shapes.field(choice, "finish_reason") or self._stop
            delta = shapes.field(choice, "delta")
            said += _text(shapes.field(delta, "content"))
            for piece in shapes.field(delta, "tool_calls") or ():
                self._piece(piece)
        self._text.append(said)
        return said

    def _piece(self, piece: Any) -> None:
        index, id = shapes.field(piece, "index") or 0, shapes.field(piece, "id")
        id = id if isinstance(id, str) and id not in ("", "null") else None
        call = self._by_index.get(index)
        # Some servers leave the index out, and then only the id tells calls apart.
        if call is None or (id and call.id and id != call.id):
            call = _Call(id or "")
            self._calls.append(call)
            self._by_index[index] = call
        call.id = call.id or id or ""
        function = shapes.field(piece, "function")
        call.name += shapes.field(function, "name") or "" if not call.name else ""
        arguments = shapes.field(function, "arguments")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments)
        call.pieces.append(arguments or "")

    def finish(self) -> Reply:
        if self._stop is None:
            raise StreamCut(f"the stream ended {'in the middle of a tool call' if self._calls else 'before its end'}")
        calls = tuple(
            ToolCall.parse(call.id or f"call-{number}", call.name, "".join(call.pieces)) for number, call in enumerate(self._calls, 1)
        )
        return Reply("".join(self._text), calls, self._usage, cut_short=self._stop == "length")


def _text(content: Any) -> str:
    """Mistral's reasoning models send lists of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(shapes.field(part, "text") or "" for part in content if shapes.field(part, "type") == "text")
    return ""
