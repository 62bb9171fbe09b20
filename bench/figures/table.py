"""The table of figures: rows are printed as they come and kept for the file of results. Budgets are marked when missed, not hidden."""

import json
import re
import statistics
import time
from pathlib import Path


def timed(function, *arguments) -> tuple[float, object]:
    """Milliseconds, and the result."""
    start = time.perf_counter()
    result = function(*arguments)
    return (time.perf_counter() - start) * 1000, result


def at(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


class Table:
    """`scale` divides the numbers of samples; `root` is the root file system for the peer, none: no ratios."""

    def __init__(self, scale: int, root: str | None) -> None:
        self.scale = scale
        self.root = root
        self.figures: dict[str, dict] = {}
        self.flames: dict[str, str] = {}
        print(f"{'milliseconds (budget, ! missed)':48} {'p50':>9}{'':8}{'p95':>9}{'':8}{'p99':>9}")

    def samples(self, count: int, least: int = 1) -> int:
        return max(least, count // self.scale)

    def times(self, name: str, values: list[float], p50: float | None = None, p95: float | None = None, p99: float | None = None):
        """Milliseconds of many runs, and at most how many they should be."""
        row = {"p50": at(values, 50), "p95": at(values, 95), "p99": at(values, 99), "n": len(values)}
        budget = {"p50": p50, "p95": p95, "p99": p99}
        self.figures[name] = row | {"budget": budget}
        cells = []
        for key, most in budget.items():
            missed = "!" if most and row[key] > most else " "
            cells.append(f"{row[key]:9.2f}{missed}{f'({most:g})' if most else '':7}")
        print(f"{name:48} {''.join(cells)} n={len(values)}", flush=True)

    def value(self, name: str, value: float, unit: str, most: float | None = None, least: float | None = None):
        """One number, and at most or at least what it should be."""
        self.figures[name] = {unit: value, "budget": {"most": most, "least": least}}
        missed = (most is not None and value > most) or (least is not None and value < least)
        budget = f"(<= {most:g})" if most is not None else f"(>= {least:g})" if least is not None else ""
        print(f"{name:48} {value:9.3f}{'!' if missed else ' '}{budget:10} {unit}", flush=True)

    def ratio(self, name: str, ours: list[float], theirs: list[float], most: float | None = None):
        """Median against the peer's median of the same run."""
        self.value(name, statistics.median(ours) / statistics.median(theirs), "times the peer", most=most)

    def shares(self, name: str, shares: dict[str, str], samples: int):
        """What percent of so many samples each had; one line each."""
        self.figures[name] = {"percent": shares, "samples": samples}
        print(f"{name} ({samples} samples)", flush=True)
        for what, percent in shares.items():
            print(f"    {percent:>5} % {what[:110]}", flush=True)

    def flame(self, name: str, graph: str):
        """A flame graph, which becomes a file beside the figures."""
        self.flames[name] = graph

    def missing(self, name: str, why: str):
        """A row that could not be measured here says so."""
        self.figures[name] = {"missing": why}
        print(f"{name:48} not measured: {why}", flush=True)

    def save(self, path: str) -> None:
        with open(path, "w") as file:
            json.dump(self.figures, file, indent=2)
        for name, graph in self.flames.items():
            file = Path(f"{path.removesuffix('.json')}-{re.sub(r'[^A-Za-z0-9]+', '-', name)}.svg")
            file.write_text(graph)
            print(f"{name}: {file}", flush=True)
