"""Mistral, by `mistralai.client.Mistral`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..messages import Message
from ..shapes import openai_tools
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
        request: dict[str, Any] = self.options | {"model": self.name, "messages": written(system, messages, self.sees_pictures)}
        if tools:
            request["tools"] = openai_tools(tools)
        # No retry_config of this client, which may retry for an hour: the conversation retries.
        return self.client.chat.stream_async(retries=None, **request)

    def assembler(self) -> "_Assembler":
        return _Assembler()


class _Assembler(ChatAssembler):
    def feed(self, chunk: Any) -> str:
        return super().feed(chunk.data)
