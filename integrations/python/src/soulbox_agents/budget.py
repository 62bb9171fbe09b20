"""Cuts what code produced to a number of tokens, and says what was cut."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Tokenizers differ by provider; this is near enough to English and code for a limit, and needs none of them.
CHARACTERS_PER_TOKEN = 4


def tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class Prose:
    """Text, of which beginning and end are kept: the end has the outcome, the beginning says of what."""

    text: str
    title: str = ""

    @property
    def size(self) -> int:
        return tokens(self.text) + tokens(self.title)

    def cut(self, budget: int) -> str:
        head = f"{self.title}\n" if self.title else ""
        if self.size <= budget:
            return head + self.text
        room = max(0, budget * CHARACTERS_PER_TOKEN - len(head) - 60)
        first, last = room - room // 3, room // 3
        left_out = len(self.text) - first - last
        end = self.text[len(self.text) - last :] if last else ""
        return f"{head}{self.text[:first]}\n[... {left_out} characters left out ...]\n{end}"


@dataclass(frozen=True)
class Rows:
    """A table as CSV, of which the first rows are kept."""

    columns: Mapping[str, Sequence[Any]]

    @property
    def count(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    @property
    def size(self) -> int:
        # Measured as it is written, but no further than any budget reaches.
        return tokens(self.cut(100_000))

    def cut(self, budget: int) -> str:
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerow(self.columns)
        most = budget * CHARACTERS_PER_TOKEN
        # Where to cut, if it comes to that: after so many rows and characters, so that the remark still fits.
        rows, end = 0, written.tell()
        for row in range(self.count):
            writer.writerow([column[row] if row < len(column) else "" for column in self.columns.values()])
            if written.tell() <= most - 60:
                rows, end = row + 1, written.tell()
            if written.tell() > most + 1:
                # A header alone can be too long: the cut of prose bounds that.
                return Prose(f"{written.getvalue()[:end]}[{rows} of {self.count} rows shown]").cut(budget)
        return Prose(written.getvalue().rstrip("\n")).cut(budget)


Part = Prose | Rows


def fit(parts: Sequence[Part], budget: int) -> str:
    """All parts in their order. What short ones leave unused goes to the long ones."""
    sizes = [part.size for part in parts]
    shares = [0] * len(parts)
    left = budget
    for done, index in enumerate(sorted(range(len(parts)), key=sizes.__getitem__)):
        shares[index] = min(sizes[index], left // (len(parts) - done))
        left -= shares[index]
    return "\n".join(part.cut(share) for part, share in zip(parts, shares, strict=True))
