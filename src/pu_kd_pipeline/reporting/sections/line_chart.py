"""Charts as SVG, which are readable at any width and follow the colors of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

_WIDTH = 340
HEIGHT = 200
_LEFT = 46
_RIGHT = 16
_TOP = 10
_BOTTOM = 24
MAX_MARKED_POINTS = 16  # a line with fewer points shows each of them
_MAX_POINTS = 400  # more cannot be distinguished at this width
_WIDE = 30  # ratio of the largest to the smallest value from which an axis is logarithmic
_FEW_DECADES = 100  # the same ratio, below which a logarithmic axis has more than powers of ten
_LOG_MARGIN = 0.06  # of the length of a logarithmic axis
_N_TICKS = 4
_RADIUS = 2.5


@dataclass(frozen=True)
class Line:
    """One line; points that are not finite are left out."""

    name: str
    role: str
    """A class of the page's style that colors it, such as "student"."""
    x: np.ndarray
    y: np.ndarray
    style: str = ""
    """"dashed", "dotted", "points" without a line, "hollow" points; several with a blank."""
    radii: np.ndarray | None = None
    """Of the points, in units of the drawing; None: the usual ones, where there are few."""
    bars: tuple[np.ndarray, np.ndarray] | None = None
    """Lower and upper ends of a bar at each point."""
    shows_last: bool = True
    """Whether the legend has the last value."""


@dataclass(frozen=True)
class Scale:
    """How an axis is drawn."""

    is_log: bool | None = None
    """Whether the axis is logarithmic, if all values are positive; None: where they differ much."""
    covers: tuple[float, ...] = ()
    """Values that the axis reaches in any case."""
    ticks: Sequence[tuple[float, str]] = ()
    """Values and labels of the ticks, of which those within the axis are drawn; none: usual."""
    is_reversed: bool = False


@dataclass(frozen=True)
class Tick:
    """A label of an axis, and where it is in the drawing."""

    place: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A point in the drawing."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Bar:
    """A vertical bar in the drawing, from one end to the other."""

    x: float
    y1: float
    y2: float


@dataclass(frozen=True)
class Path:
    """A line in the drawing."""

    name: str
    role: str
    style: str
    points: str
    """Empty for points without a line."""
    dots: list[Dot]
    bars: list[Bar]
    last: str
    """The last value, as text; empty where the legend leaves it out."""


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
    title: str,
    x_title: str,
    lines: Sequence[Line],
    y_limits: tuple[float, float] | None = None,
    *,
    x_scale: Scale | None = None,
    y_scale: Scale | None = None,
    height: int = HEIGHT,
) -> LineChart | None:
    """Return a chart; None where no line has a point.

    Args:
        title: what the lines show.
        x_title: what the horizontal axis is.
        lines: the lines; later ones are drawn on top.
        y_limits: values that the vertical axis covers in any case; it is not logarithmic then.
        x_scale: of the horizontal axis; None: from the first to the last point.
        y_scale: of the vertical axis, in place of `y_limits`.
        height: of the drawing, which is 340 wide.
    """
    known = [line for line in map(_finite, lines) if len(line.x)]
    if not known:
        return None
    y_scale = y_scale or Scale(False if y_limits else None, y_limits or ())
    is_x_tight = x_scale is None
    x_scale = x_scale or Scale(False)
    x = np.concatenate([line.x for line in known])
    y = np.concatenate([part for line in known for part in (line.y, *(line.bars or ()))])
    bottom = height - _BOTTOM
    x_axis = _Axis.of(x, (_LEFT, _WIDTH - _RIGHT), x_scale, is_tight=is_x_tight)
    y_axis = _Axis.of(y, (bottom, _TOP), y_scale, is_tight=bool(y_scale.ticks))
    paths = [_path(line, x_axis, y_axis) for line in known]
    zero = None
    if not y_axis.is_log and y_axis.low < 0 < y_axis.high:
        zero = _rounded(y_axis.place(0.0))
    is_labeled_log = y_axis.is_log and not y_scale.ticks
    return LineChart(
        title=title + (" (log scale)" if is_labeled_log else ""),
        x_title=x_title,
        alt=_alternative_text(title, x_title, paths),
        width=_WIDTH,
        height=height,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=bottom,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        paths=paths,
        zero=zero,
    )


def _finite(line: Line) -> Line:
    """Return a line without the points that are not finite."""
    is_finite = np.isfinite(line.x) & np.isfinite(line.y)
    radii = None if line.radii is None else line.radii[is_finite]
    bars = None
    if line.bars is not None:
        lower, upper = line.bars
        bars = (lower[is_finite], upper[is_finite])
    return replace(line, x=line.x[is_finite], y=line.y[is_finite], radii=radii, bars=bars)


def _alternative_text(title: str, x_title: str, paths: Sequence[Path]) -> str:
    parts = []
    for path in paths:
        name = path.name or title
        parts.append(f"{name} ends at {path.last}" if path.last else name)
    return f"{title} over {x_title}: {'; '.join(parts)}"


@dataclass(frozen=True)
class _Axis:
    """Maps values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    labels: tuple[tuple[float, str], ...]

    @staticmethod
    def of(values: np.ndarray, span: tuple[float, float], scale: Scale, *, is_tight: bool) -> _Axis:
        covered = np.append(values, scale.covers)
        low = float(covered.min())
        high = float(covered.max())
        is_log = scale.is_log
        if is_log is None:
            is_log = high > _WIDE * low
        # Such an axis has no place for zero and below: all values are shown on a linear one.
        is_log = is_log and low > 0
        if low == high:
            # A constant still needs an axis with a length.
            low, high = (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
        ticks = _usual_ticks(low, high, is_log=is_log)
        if not is_tight and not is_log:
            low = min(low, ticks[0])
            high = max(high, ticks[-1])
        elif not is_tight and scale.is_log is not None:
            # Points at the very ends of a scatter would be cut in half.
            margin = (high / low) ** _LOG_MARGIN
            low, high = low / margin, high * margin
        labels = scale.ticks or [(tick, _text(tick)) for tick in ticks]
        inside = tuple((value, text) for value, text in labels if low <= value <= high)
        start, end = span
        if scale.is_reversed:
            start, end = end, start
        return _Axis(low, high, start, end, is_log, inside)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = np.log(low), np.log(high), np.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[Tick]:
        return [Tick(_rounded(self.place(value)), text) for value, text in self.labels]


def _usual_ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    from matplotlib.ticker import LogLocator, MaxNLocator

    if is_log and high < _FEW_DECADES * low:
        # Within a decade or two, powers of ten would be too few.
        locator: LogLocator | MaxNLocator = LogLocator(subs=(1.0, 2.0, 5.0))
    elif is_log:
        locator = LogLocator(numticks=_N_TICKS + 2)
    else:
        locator = MaxNLocator(nbins=_N_TICKS, steps=[1, 2, 2.5, 5, 10])
    return [float(tick) for tick in locator.tick_values(low, high)]


def _path(line: Line, x_axis: _Axis, y_axis: _Axis) -> Path:
    n = len(line.x)
    kept = np.arange(n)
    if n > _MAX_POINTS:
        kept = np.unique(np.linspace(0, n - 1, _MAX_POINTS).round().astype(np.int64))
    points = []
    for x, y in zip(line.x[kept], line.y[kept], strict=True):
        points.append((_rounded(x_axis.place(float(x))), _rounded(y_axis.place(float(y)))))
    text = " ".join(f"{x},{y}" for x, y in points)
    if "points" in line.style.split():
        text = ""
    dots = []
    if n <= MAX_MARKED_POINTS or line.radii is not None:
        radii = np.full(n, _RADIUS) if line.radii is None else line.radii
        dots = [
            Dot(x, y, _rounded(radius)) for (x, y), radius in zip(points, radii[kept], strict=True)
        ]
    bars = []
    if line.bars is not None:
        for (x, _), lower, upper in zip(points, *(end[kept] for end in line.bars), strict=True):
            ends = (_rounded(y_axis.place(float(end))) for end in (lower, upper))
            bars.append(Bar(x, *ends))
    last = _text(float(line.y[-1])) if line.shows_last else ""
    return Path(line.name, line.role, line.style, text, dots, bars, last)


def _rounded(value: float) -> float:
    return round(float(value), 1)


def _text(value: float) -> str:
    text = f"{value:.3g}"
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    return text.replace("-", "−")
