"""Line charts as SVG, which are readable at any width and follow the colors of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WIDTH = 340
_HEIGHT = 200
_LEFT = 46
_RIGHT = 16
_TOP = 10
_BOTTOM = 24
MAX_MARKED_POINTS = 16  # a line with fewer points shows each of them
_MAX_POINTS = 400  # more cannot be distinguished at this width
_WIDE = 30  # ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Line:
    """One line; points that are not finite are left out."""

    name: str
    role: str
    """A class of the page's style that colors it, such as "student"."""
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Tick:
    """A label of an axis, and where it is in the drawing."""

    place: float
    text: str


@dataclass(frozen=True)
class Path:
    """A line in the drawing."""

    name: str
    role: str
    points: str
    dots: list[tuple[float, float]]
    last: str
    """The last value, as text."""


@dataclass(frozen=True)
class LineChart:
    """What the template draws; lengths are in units of the drawing."""

    title: str
    x_title: str
    alt: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    paths: list[Path]
    zero: float | None
    """Where the line at zero is; None where it is not within the axes."""


def line_chart(
    title: str, x_title: str, lines: Sequence[Line], y_limits: tuple[float, float] | None = None
) -> LineChart | None:
    """Return a chart; None where no line has a point.

    Args:
        title: what the lines show.
        x_title: what the horizontal axis is.
        lines: the lines; later ones are drawn on top.
        y_limits: values that the axis covers in any case.
    """
    known = []
    for line in lines:
        is_finite = np.isfinite(line.x) & np.isfinite(line.y)
        if is_finite.any():
            known.append(Line(line.name, line.role, line.x[is_finite], line.y[is_finite]))
    if not known:
        return None
    x = np.concatenate([line.x for line in known])
    y = np.concatenate([line.y for line in known])
    is_log = y_limits is None and bool((y > 0).all()) and y.max() > _WIDE * y.min()
    x_axis = _Axis.of(x, (_LEFT, _WIDTH - _RIGHT), is_log=False, n_ticks=4, is_tight=True)
    covered = y if y_limits is None else np.append(y, y_limits)
    y_axis = _Axis.of(covered, (_HEIGHT - _BOTTOM, _TOP), is_log=is_log, n_ticks=4)
    paths = [_path(line, x_axis, y_axis) for line in known]
    zero = None
    if not is_log and y_axis.low < 0 < y_axis.high:
        zero = _rounded(y_axis.place(0.0))
    parts = [f"{path.name or title} ends at {path.last}" for path in paths]
    return LineChart(
        title=title + (" (log scale)" if is_log else ""),
        x_title=x_title,
        alt=f"{title} over {x_title}: {'; '.join(parts)}",
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        paths=paths,
        zero=zero,
    )


@dataclass(frozen=True)
class _Axis:
    """Maps values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    values: tuple[float, ...]

    @staticmethod
    def of(
        values: np.ndarray,
        span: tuple[float, float],
        *,
        is_log: bool,
        n_ticks: int,
        is_tight: bool = False,
    ) -> _Axis:
        from matplotlib.ticker import LogLocator, MaxNLocator

        low = float(values.min())
        high = float(values.max())
        if low == high:
            # A constant still needs an axis with a length.
            low, high = low - 0.5, high + 0.5
            if is_log:
                low, high = low / 2, high * 2
        if is_log:
            ticks = LogLocator(numticks=n_ticks + 2).tick_values(low, high)
        else:
            locator = MaxNLocator(nbins=n_ticks, steps=[1, 2, 2.5, 5, 10])
            ticks = locator.tick_values(low, high)
        if not is_tight and not is_log:
            low = min(low, float(ticks[0]))
            high = max(high, float(ticks[-1]))
        inside = tuple(float(tick) for tick in ticks if low <= tick <= high)
        return _Axis(low, high, *span, is_log, inside)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = np.log(low), np.log(high), np.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[Tick]:
        return [Tick(_rounded(self.place(value)), _text(value)) for value in self.values]


def _path(line: Line, x_axis: _Axis, y_axis: _Axis) -> Path:
    n = len(line.x)
    kept = np.arange(n)
    if n > _MAX_POINTS:
        kept = np.unique(np.linspace(0, n - 1, _MAX_POINTS).round().astype(np.int64))
    points = []
    for x, y in zip(line.x[kept], line.y[kept], strict=True):
        points.append((_rounded(x_axis.place(float(x))), _rounded(y_axis.place(float(y)))))
    text = " ".join(f"{x},{y}" for x, y in points)
    dots = points if n <= MAX_MARKED_POINTS else []
    return Path(line.name, line.role, text, dots, _text(float(line.y[-1])))


def _rounded(value: float) -> float:
    return round(float(value), 1)


def _text(value: float) -> str:
    text = f"{value:.3g}"
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    return text.replace("-", "−")
