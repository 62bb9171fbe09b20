"""What a conversation needs of a model. `models` has the adapters for official clients; another is two small classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .messages import Message, ToolCall, Usage
from .tools import Tool


@dataclass(frozen=True)
class Reply:
    """A whole turn of the model. `cut_short` when it reached its limit of tokens."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    raw: Any = None
    cut_short: bool = False


class StreamCut(Exception):
    """The provider's stream ended before the turn did."""


class Assembler(Protocol):
    """Puts one turn together from the chunks of its stream."""

    def feed(self, chunk: Any) -> str:
        """The text that this chunk adds."""
        ...

    def finish(self) -> Reply:
        """The turn, after the last chunk.

        Raises `StreamCut` when there should have been more.
        """
        ...


class Model(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def sees_pictures(self) -> bool:
        """Whether charts are sent to it as images; it is told of them in words in any case."""
        ...

    @property
    def secrets(self) -> Sequence[str]:
        """Keys that must not get into what is said about a failure."""
        ...

    def open(self, system: str, messages: Sequence[Message], tools: Sequence[Tool]) -> Any:
        """Begins a streamed turn: an iterable, an async iterable, or an awaitable of one. May block."""
        ...

    def assembler(self) -> Assembler: ...
