"""What a conversation consists of, in no provider's words: the adapters of `models` translate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Picture:
    """An image that code has shown. `chart` has what was drawn, where the interpreter could tell."""

    media_type: str
    data: bytes
    chart: Mapping[str, Any] | None = None

    def describe(self) -> str:
        """One line for a model that cannot see."""
        if not self.chart:
            return f"an image ({self.media_type}, {len(self.data)} bytes)"
        said = [f"a {self.chart.get('type') or 'unknown'} chart"]
        if title := self.chart.get("title"):
            said.append(f"titled {title!r}")
        said += [f"{axis} {label!r}" for axis in ("x", "y") if (label := self.chart.get(f"{axis}_label"))]
        elements: Sequence[Mapping[str, Any]] = self.chart.get("elements") or ()
        names = [str(element.get("label") or element.get("title") or "unnamed") for element in elements[:10]]
        if names:
            more = f" and {len(elements) - len(names)} more" if len(elements) > len(names) else ""
            said.append(f"of {', '.join(names)}{more}")
        return " ".join(said)


@dataclass(frozen=True)
class ToolCall:
    """What a model wants done. `problem` says why it cannot be, where its words made no sense."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problem: str | None = None

    @classmethod
    def parse(cls, id: str, name: str, text: str) -> "ToolCall":
        """Of arguments that came as JSON text, whatever it is worth."""
        try:
            arguments: Any = json.loads(text or "{}")
        except ValueError as error:
            return cls(id, name, problem=f"the arguments are not JSON: {error}")
        return cls.of(id, name, arguments)

    @classmethod
    def of(cls, id: str, name: str, arguments: Any) -> "ToolCall":
        if not isinstance(arguments, Mapping):
            return cls(id, name, problem="the arguments are not a JSON object")
        return cls(id, name, dict(arguments))


@dataclass(frozen=True)
class ToolResult:
    """What the model is told. `pictures` are those that it is to see, `lost` says that the sandbox is no more.

    `exit_code` is a command's.
    """

    call: ToolCall
    text: str
    failed: bool = False
    pictures: tuple[Picture, ...] = ()
    lost: bool = False
    exit_code: int | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens. `estimated`, where the provider did not say."""

    input: int = 0
    output: int = 0
    estimated: bool = False

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.input + other.input, self.output + other.output, self.estimated or other.estimated)


@dataclass(frozen=True)
class User:
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Assistant:
    """`raw` is the turn as its provider wrote it; it goes back unchanged where a provider wants that."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    raw: Any = None


@dataclass(frozen=True)
class Results:
    results: tuple[ToolResult, ...]


Message = User | Assistant | Results
