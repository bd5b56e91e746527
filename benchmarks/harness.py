"""How the benchmarks measure, and what a row of their table holds.

A and B are called in turn, in one process, and compared by CPU time: what else the machine does
then falls on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
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
        goal: None where the value is only reported. With `share`, the goal is a share, too.
        limit: the value that the hardware would allow, or the share of it that was reached.
        note: what else a reader must know.
        share: percent of the limit that was reached; the goal is about this number then.
        throughput: images that ours does in a second of one core; None where none are counted.
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
    share: float | None = None
    throughput: float | None = None

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or `-` where there is no value or no goal."""
        if self.value is None or self.goal is None:
            return "-"
        reached = self.value if self.share is None else self.share
        if self.sense == ">=":
            is_met = reached >= self.goal
        else:
            is_met = reached <= self.goal
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
    """The cost of one thing divided by the cost of another, for the same work.

    Attributes:
        median, low, high: of several pairs.
        seconds: median CPU time of the second one, as it was called; None where it is not known.
    """

    median: float
    low: float
    high: float
    seconds: float | None = None

    def over(self, factor: float) -> Ratio:
        """Return the ratio for equal work where the first did `factor` times the work."""
        return replace(
            self,
            median=self.median / factor,
            low=self.low / factor,
            high=self.high / factor,
        )

    @classmethod
    def of(cls, values: list[float], seconds: list[float] | None = None) -> Ratio:
        """Return the median and the extremes of several measured ratios.

        Args:
            values: the ratios.
            seconds: of the second one, in each pair.
        """
        of_second = statistics.median(seconds) if seconds else None
        return cls(statistics.median(values), min(values), max(values), of_second)

    def throughput(self, n_images: int) -> float | None:
        """Return how many images the second one does in a second of one core.

        Args:
            n_images: that it does in one call.
        """
        return None if self.seconds is None else n_images / self.seconds


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
    seconds = []
    for _ in range(repeats):
        first_seconds = cpu_seconds(first)
        # The clock may not advance at all during a very short call.
        second_seconds = max(cpu_seconds(second), 1e-9)
        ratios.append(first_seconds / second_seconds)
        seconds.append(second_seconds)
    return Ratio.of(ratios, seconds)


def has_native_bf16() -> bool:
    """Return whether this CPU has instructions for bf16 matrix products."""
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.exists():
        return False
    flags = cpu_info.read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


# --- rows and tables ------------------------------------------------------------------------------


def speedup(
    target: str,
    what: str,
    gain: Ratio,
    goal: float | None,
    limit: str = "",
    note: str = "",
    n_images: int | None = None,
) -> Measurement:
    """Return the row of a ratio that should be at least its goal.

    Args:
        target, what, goal, limit, note: see `Measurement`.
        gain: the cost of the other side, over ours.
        n_images: that ours does in one call.
    """
    throughput = gain.throughput(n_images) if n_images else None
    return Measurement(
        target,
        what,
        gain.median,
        gain.low,
        gain.high,
        "x",
        ">=",
        goal,
        limit,
        note,
        throughput=throughput,
    )


def share_of_limit(
    target: str,
    what: str,
    gain: Ratio,
    least: Ratio,
    goal: float,
    limit: str,
    note: str = "",
    n_images: int | None = None,
) -> Measurement:
    """Return the row of a ratio that no code can raise above a limit, with a goal for the share.

    Args:
        target, what, note, n_images: see `speedup`.
        gain: the cost of the other side, over ours.
        least: the cost of the other side, over the least work that any code has to do.
        goal: least share of the limit in percent.
        limit: what the least work is.
    """
    row = speedup(target, what, gain, goal, f"{_formatted(least.median)} x {limit}", note, n_images)
    return replace(row, share=100 * gain.median / least.median)


def unmeasured(target: str, what: str, goal: float, note: str) -> Measurement:
    """Return the row of a speedup that cannot be measured on this machine."""
    return Measurement(target, what, None, None, None, "x", ">=", goal, note=note)


def markdown(rows: list[Measurement]) -> str:
    """Return the rows as a Markdown table."""
    header = ["target", "what", "measured", "spread", "goal", "", "limit"]
    rule = ["---", "---", "---:", "---:", "---:", "---", "---"]
    header += ["images per core-second", "note"]
    rule += ["---:", "---"]
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
        unit = row.unit if row.share is None else "% of the limit"
        goal = f"{sign} {row.goal:g} {unit}"
    limit = row.limit
    if row.share is not None:
        limit = f"{row.share:.0f} % of {limit}"
    throughput = ""
    if row.throughput is not None:
        throughput = _formatted(row.throughput)
    return [
        *(row.target, row.what, measured, spread, goal, row.verdict),
        *(limit, throughput, row.note),
    ]


def _formatted(value: float) -> str:
    """Return a number with three digits or so."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"
