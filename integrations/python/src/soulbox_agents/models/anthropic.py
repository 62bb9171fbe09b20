"""Anthropic's Messages API."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..messages import Assistant, Message, Results, ToolCall, Usage, User
from ..model import Reply, StreamCut
from ..shapes import anthropic_picture, anthropic_result, anthropic_tools
from ..tools import Tool

if TYPE_CHECKING:
    from anthropic import Anthropic, AsyncAnthropic


class AnthropicModel:
    """Over `anthropic.Anthropic` or `AsyncAnthropic`. `options` go into each request, say `thinking` or `temperature`."""

    def __init__(
        self, client: "Anthropic | AsyncAnthropic", model: str, *, max_tokens: int = 8192, sees_pictures: bool = True, **options: Any
    ) -> None:
        # The conversation retries, where it is seen and bounded by its limits.
        self.client = client.with_options(max_retries=0)
        self.name = model
        self.sees_pictures = sees_pictures
        self.options: dict[str, Any] = {"max_tokens": max_tokens, **options}

    @property
    def secrets(self) -> Sequence[str]:
        return [secret for secret in (self.client.api_key, self.client.auth_token) if secret]

    def open(self, system: str, messages: Sequence[Message], tools: Sequence[Tool]) -> Any:
        request: dict[str, Any] = self.options | {
            "model": self.name,
            "messages": [self._message(message) for message in messages],
            "stream": True,
        }
        if system:
            request["system"] = system
        if tools:
            request["tools"] = anthropic_tools(tools)
        return self.client.messages.create(**request)

    def assembler(self) -> "_Assembler":
        return _Assembler()

    def _message(self, message: Message) -> dict[str, Any]:
        match message:
            case User(text, pictures):
                shown = [anthropic_picture(picture) for picture in pictures] if self.sees_pictures else []
                return {"role": "user", "content": [{"type": "text", "text": text}, *shown]}
            case Assistant(text, _, raw):
                return {"role": "assistant", "content": raw or [{"type": "text", "text": text or "(no answer)"}]}
            case Results(results):
                written = [anthropic_result(result) for result in results]
                if not self.sees_pictures:
                    written = [one | {"content": one["content"][:1]} for one in written]
                return {"role": "user", "content": written}


@dataclass
class _Block:
    """A content block; `pieces` are of its text, thinking or arguments."""

    content: dict[str, Any]
    pieces: list[str] = field(default_factory=list[str])


_PIECES = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class _Assembler:
    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._usage: Usage | None = None
        self._stop: str | None = None

    def feed(self, chunk: Any) -> str:
        match chunk.type:
            case "message_start":
                self._usage = Usage(chunk.message.usage.input_tokens or 0)
            case "content_block_start":
                self._blocks[chunk.index] = _Block(chunk.content_block.model_dump(exclude_none=True))
            case "content_block_delta":
                block, delta = self._blocks[chunk.index], chunk.delta
                if name := _PIECES.get(delta.type):
                    block.pieces.append(getattr(delta, name))
                elif delta.type == "signature_delta":
                    block.content["signature"] = delta.signature
                return delta.text if delta.type == "text_delta" else ""
            case "message_delta":
                self._stop = chunk.delta.stop_reason or self._stop
                self._usage = Usage(self._usage.input if self._usage else 0, chunk.usage.output_tokens or 0)
            case _:
                pass
        return ""

    def finish(self) -> Reply:
        blocks = list(self._blocks.values())
        if self._stop is None:
            where = "in the middle of a tool call" if blocks and blocks[-1].content["type"] == "tool_use" else "before its end"
            raise StreamCut(f"the stream ended {where}")
        calls: list[ToolCall] = []
        for block in blocks:
            content, text = block.content, "".join(block.pieces)
            if content["type"] == "tool_use":
                call = ToolCall.parse(content["id"], content["name"], text) if text else ToolCall.of(
                    content["id"], content["name"], content.get("input") or {}
                )  # fmt: skip
                # What could not be read is told to the model in the result; the wire wants an object here.
                content["input"] = dict(call.arguments)
                calls.append(call)
            elif content["type"] in ("text", "thinking"):
                content[content["type"]] = content.get(content["type"], "") + text
        raw = [block.content for block in blocks if block.content.get("text") != ""]
        text = "".join(block.content["text"] for block in blocks if block.content["type"] == "text")
        return Reply(text, tuple(calls), self._usage, raw, cut_short=self._stop == "max_tokens")
