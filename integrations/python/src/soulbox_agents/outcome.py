"""How far a conversation may go, and how it ended."""

from dataclasses import dataclass
from enum import StrEnum

from .messages import Picture, ToolResult, Usage


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in the currency of `Limits.cost`."""

    input: float
    output: float

    def of(self, usage: Usage) -> float:
        return (usage.input * self.input + usage.output * self.output) / 1_000_000


@dataclass(frozen=True)
class Limits:
    """Of one run. `turns` are answers of the model; `seconds` are of the whole run; `cost` needs `Prices`. None is no limit."""

    turns: int | None = 20
    seconds: float | None = 600
    cost: float | None = None


class Ending(StrEnum):
    FINISHED = "finished"
    TURN_LIMIT = "turn_limit"
    TIME_LIMIT = "time_limit"
    COST_LIMIT = "cost_limit"
    CANCELLED = "cancelled"
    PROVIDER_FAILED = "provider_failed"
    SANDBOX_LOST = "sandbox_lost"


@dataclass(frozen=True)
class Outcome:
    """`cause` is one line that says why it ended as it did. `text` is the model's last answer, `results` what its code did."""

    ending: Ending
    cause: str
    text: str
    turns: int
    results: tuple[ToolResult, ...]
    pictures: tuple[Picture, ...]
    usage: Usage
    cost: float | None
    status: int | None = None
    """The provider's HTTP status, where it failed with one."""

    @property
    def calls(self) -> int:
        return len(self.results)

    @property
    def finished(self) -> bool:
        return self.ending is Ending.FINISHED
