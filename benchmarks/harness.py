"""How the benchmarks measure: A against B in turn, in one process, by CPU time; and what a row of the table holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Measurement:
    """One row: a number, the goal that it is held against, and where the limit is.

    Attributes:
        target: number of the target, such as "1".
        what: what was measured, and against what.
        value: the median; null where it cannot be measured here, and `note` says why.
        low, high: the extremes of the repeats.
        unit: "x" for ratios, "%" or "s".
        sense: whether the value should be at least or at most the goal.
        goal: null for what is only reported.
        limit: share of what the hardware could do at most, and what that is; "" where it says nothing.
        note: anything that the reader must know.
    """

    target: str
    what: str
    value: float | None
    low: float | None
    high: float | None
    unit: Literal["x", "%", "s"]
    sense: Literal[">=", "<="]
    goal: float | None
    limit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or `-` where there is nothing to judge."""
        if self.value is None or self.goal is None:
            return "-"
        is_met = self.value >= self.goal if self.sense == ">=" else self.value <= self.goal
        return "met" if is_met else "missed"

    def as_json(self) -> dict[str, Any]:
        """Return the row as a mapping, with its verdict."""
        return {**asdict(self), "verdict": self.verdict}


class Benchmark(Protocol):
    """A module of benchmarks: yields its rows. `images` is the folder of image files, or None."""

    def __call__(self, images: Path | None, work: Path) -> Iterator[Measurement]: ...


@dataclass(frozen=True)
class Ratio:
    """How many times as much CPU time one thing takes as another, for the same work."""

    median: float
    low: float
    high: float

    def over(self, factor: float) -> Ratio:
        """Return the ratio where the first does `factor` times as much work in what was timed."""
        return Ratio(self.median / factor, self.low / factor, self.high / factor)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call, of all threads of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratio(
    first: Callable[[], object], second: Callable[[], object], repeats: int = 7, warm_up: int = 1
) -> Ratio:
    """Return CPU time of `first` / CPU time of `second`: calls in turn, the median of the pairs' ratios, extremes."""
    for _ in range(warm_up):
        first()
        second()
    ratios = sorted(cpu_seconds(first) / max(cpu_seconds(second), 1e-9) for _ in range(repeats))
    return Ratio(statistics.median(ratios), ratios[0], ratios[-1])


def markdown(rows: list[Measurement]) -> str:
    """Return the table."""
    header = ["target", "what", "measured", "spread", "goal", "", "limit", "note"]
    lines = [header, ["---", "---", "---:", "---:", "---:", "---", "---", "---"]]
    for row in rows:
        spread = (
            ""
            if row.low is None or row.high is None
            else f"{_shown(row.low)} to {_shown(row.high)}"
        )
        measured = "–" if row.value is None else f"{_shown(row.value)} {row.unit}"
        goal = (
            ""
            if row.goal is None
            else f"{'≥' if row.sense == '>=' else '≤'} {row.goal:g} {row.unit}"
        )
        lines.append(
            [row.target, row.what, measured, spread, goal, row.verdict, row.limit, row.note]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
