"""How the benchmarks measure, and what a row of their table holds.

A and B are called in turn, in one process, and compared by CPU time: what else the machine does
then falls on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Measurement:
    """One row: a number, its goal, and how much the hardware would allow.

    Attributes:
        target: number of the target, such as "1".
        what: what was measured, and against what.
        value: the median; None where it cannot be measured here, and `note` gives the reason.
        low, high: the extremes of the repeats.
        unit: "x" for ratios, "%" or "s".
        sense: whether the value should be at least or at most the goal.
        goal: None where the value is only reported.
        limit: the value that the hardware would allow, or the share of it that was reached.
        note: what else a reader must know.
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
        """`met`, `missed`, or `-` where there is no value or no goal."""
        if self.value is None or self.goal is None:
            return "-"
        if self.sense == ">=":
            is_met = self.value >= self.goal
        else:
            is_met = self.value <= self.goal
        if is_met:
            return "met"
        return "missed"

    def as_json(self) -> dict[str, Any]:
        """Return the row as a mapping, with its verdict."""
        return {**asdict(self), "verdict": self.verdict}


class Benchmark(Protocol):
    """Yields the rows of one target.

    Args:
        images: the folder of image files; None: images are generated.
        work: a folder for generated stores.
    """

    def __call__(self, images: Path | None, work: Path) -> Iterator[Measurement]: ...


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """The cost of one thing divided by the cost of another, for the same work."""

    median: float
    low: float
    high: float

    def over(self, factor: float) -> Ratio:
        """Return the ratio for equal work where the first did `factor` times the work."""
        return Ratio(self.median / factor, self.low / factor, self.high / factor)

    @classmethod
    def of(cls, values: list[float]) -> Ratio:
        """Return the median and the extremes of several measured ratios."""
        return cls(statistics.median(values), min(values), max(values))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call, over all threads of this process."""
    # Not the time by the clock: other processes would count.
    start = time.process_time()
    work()
    end = time.process_time()
    return end - start


def repeated(work: Callable[[], object], n_calls: int) -> Callable[[], None]:
    """Return a function that calls another one `n_calls` times."""

    def call() -> None:
        for _ in range(n_calls):
            work()

    return call


def ratio(
    first: Callable[[], object], second: Callable[[], object], repeats: int = 7, warm_up: int = 1
) -> Ratio:
    """Return CPU time of `first` / CPU time of `second`.

    They are called in turn; each pair of calls gives one ratio.
    """
    # First calls import modules, fill caches and choose algorithms.
    for _ in range(warm_up):
        first()
        second()
    ratios = []
    for _ in range(repeats):
        first_seconds = cpu_seconds(first)
        # The clock may not advance at all during a very short call.
        second_seconds = max(cpu_seconds(second), 1e-9)
        ratios.append(first_seconds / second_seconds)
    return Ratio.of(ratios)


def has_native_bf16() -> bool:
    """Return whether this CPU has instructions for bf16 matrix products."""
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.exists():
        return False
    flags = cpu_info.read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


# --- rows and tables ------------------------------------------------------------------------------


def speedup(
    target: str, what: str, gain: Ratio, goal: float | None, limit: str = "", note: str = ""
) -> Measurement:
    """Return the row of a ratio that should be at least its goal."""
    return Measurement(target, what, gain.median, gain.low, gain.high, "x", ">=", goal, limit, note)


def unmeasured(target: str, what: str, goal: float, note: str) -> Measurement:
    """Return the row of a speedup that cannot be measured on this machine."""
    return Measurement(target, what, None, None, None, "x", ">=", goal, note=note)


def markdown(rows: list[Measurement]) -> str:
    """Return the rows as a Markdown table."""
    header = ["target", "what", "measured", "spread", "goal", "", "limit", "note"]
    rule = ["---", "---", "---:", "---:", "---:", "---", "---", "---"]
    lines = [_line(header), _line(rule)]
    for row in rows:
        cells = _cells(row)
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    joined = " | ".join(cells)
    return f"| {joined} |"


def _cells(row: Measurement) -> list[str]:
    # A row without a value stays in the table: its note gives the reason.
    measured = "–"
    if row.value is not None:
        value = _formatted(row.value)
        measured = f"{value} {row.unit}"
    spread = ""
    if row.low is not None and row.high is not None:
        low = _formatted(row.low)
        high = _formatted(row.high)
        spread = f"{low} to {high}"
    goal = ""
    if row.goal is not None:
        sign = "≤"
        if row.sense == ">=":
            sign = "≥"
        goal = f"{sign} {row.goal:g} {row.unit}"
    return [row.target, row.what, measured, spread, goal, row.verdict, row.limit, row.note]


def _formatted(value: float) -> str:
    """Return a number with three digits or so."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"
