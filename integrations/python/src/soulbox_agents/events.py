"""What is heard of a conversation while it runs. Each is told once and in order."""

from dataclasses import dataclass
from typing import Literal

from .messages import Picture, ToolCall, ToolResult


@dataclass(frozen=True)
class Text:
    """A piece of what the model says, as it arrives."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    call: ToolCall


@dataclass(frozen=True)
class Output:
    """What code prints, as it does."""

    call: ToolCall
    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True)
class Shown:
    call: ToolCall
    picture: Picture


@dataclass(frozen=True)
class CallFinished:
    result: ToolResult


@dataclass(frozen=True)
class Retrying:
    """The provider is asked again. `text` was told of the failed attempt and is void."""

    cause: str
    after: float
    text: str


Event = Text | CallStarted | Output | Shown | CallFinished | Retrying
