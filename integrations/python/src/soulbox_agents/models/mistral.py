"""Mistral, by `mistralai.client.Mistral`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..messages import Message, Results
from ..shapes import openai_picture, openai_result, openai_tools
from ..tools import Tool
from .chat import ChatAssembler, written

if TYPE_CHECKING:
    from mistralai.client import Mistral


class MistralModel:
    """Codestral has no tools: wrap this in `Fenced`. `options` go into each request."""

    def __init__(self, client: "Mistral", model: str, *, sees_pictures: bool = False, **options: Any) -> None:
        self.client = client
        self.name = model
        self.sees_pictures = sees_pictures
        self.options = options

    @property
    def secrets(self) -> Sequence[str]:
        security = self.client.sdk_configuration.security
        key = getattr(security() if callable(security) else security, "api_key", None)
        return [key] if isinstance(key, str) and key else []

    def open(self, system: str, messages: Sequence[Message], tools: Sequence[Tool]) -> Any:
        request: dict[str, Any] = self.options | {"model": self.name, "messages": written(system, messages, self.sees_pictures, _results)}
        if tools:
            request["tools"] = openai_tools(tools)
        # No retry_config of this client, which may retry for an hour: the conversation retries.
        return self.client.chat.stream_async(retries=None, **request)

    def assembler(self) -> "_Assembler":
        return _Assembler()


def _results(message: Results, sees_pictures: bool) -> list[dict[str, Any]]:
    """Here, unlike with OpenAI, a result itself can hold pictures, and nobody may speak between results and the answer."""
    said: list[dict[str, Any]] = []
    for result in message.results:
        one = openai_result(result)
        if sees_pictures and result.pictures:
            one["content"] = [{"type": "text", "text": result.text}, *map(openai_picture, result.pictures)]
        said.append(one)
    return said


class _Assembler(ChatAssembler):
    def feed(self, chunk: Any) -> str:
        return super().feed(chunk.data)
