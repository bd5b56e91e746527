"""The results of a comparison as charts of its HTML page, which follow the page's colors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.comparison.gap_panel import shown_rows
from pu_kd_pipeline.reporting.sections.line_chart import Line, LineChart, Scale, line_chart
from pu_kd_pipeline.reporting.sections.prior import Reading

if TYPE_CHECKING:
    import pandas as pd

    from pu_kd_pipeline.comparison.gap import Gap

_ACCURACIES = (0, 20, 50, 60, 70, 75, 80, 85, 90, 95, 97, 98, 99, 99.5, 99.8, 99.9)
_LEAST_ERROR = 0.05  # percent: an accuracy of 100 has no place on a logarithmic axis
_FEW_TICKS = 3
_LEAST_DISTANCE = 0.06  # of two labels, as a share of the axis
_N_COLORS = 8
_STYLES = ("", "dashed", "dotted")
_HEIGHT = 280
_MARGIN = 0.04  # of the length of an axis of errors
# Shares of the gap: what is further out is cut off, or one wide interval would hide all others.
_WIDEST = (-1.5, 2.5)


@dataclass(frozen=True)
class Dots:
    """Values with intervals, one below the other, on one axis."""

    title: str
    readings: list[Reading]
    marks: list[float]
    """Places of vertical lines, in [0, 1]."""
    low: str
    """The value at the left end, and `high` at the right one."""
    high: str
    note: str


@dataclass(frozen=True)
class Look:
    """How the lines of a row are drawn, everywhere on the page."""

    role: str
    style: str


def looks_of(rows: Sequence[str]) -> dict[str, Look]:
    """Return the look of each row: a color, and a style where colors repeat."""
    looks = {}
    for number, name in enumerate(rows):
        style = _STYLES[number // _N_COLORS % len(_STYLES)]
        looks[name] = Look(f"row-{number % _N_COLORS}", style)
    return looks


def accuracy_dots(
    title: str, rows: pd.DataFrame, leader: str, teacher_percent: float
) -> Dots | None:
    """Return the accuracy of each row with one standard deviation over the seeds, the best first.

    The axis is logarithmic in the error, so that 98.5 and 99.0 % stay apart while 40 % is still in
    the picture.

    Args:
        title: of the chart.
        rows: of `means_over_seeds`, the best first.
        leader: name of the row that leads.
        teacher_percent: marked by a line; NaN: not known.
    """
    if not len(rows):
        return None
    means = rows["mean"].to_numpy(float)
    deviations = rows["std"].fillna(0.0).to_numpy(float)
    worst = np.log(_errors(means - deviations))
    best = np.log(_errors(means + deviations))
    covered = np.concatenate([worst, best])
    if np.isfinite(teacher_percent):
        covered = np.append(covered, np.log(_errors(teacher_percent)))
    largest = float(covered.max())
    smallest = float(covered.min())
    margin = _MARGIN * (largest - smallest) or 0.1
    # No accuracy is below 0 %.
    largest = min(largest + margin, float(np.log(100)))
    smallest -= margin

    def place(log_error: float) -> float:
        return float((largest - log_error) / (largest - smallest))

    readings: list[Reading] = []
    for index, (_, row) in enumerate(rows.iterrows()):
        text = f"{row['mean']:.2f} %"
        has_deviation = np.isfinite(row["std"])
        if has_deviation:
            text = f"{row['mean']:.2f} ± {row['std']:.2f} %"
        kind = "used" if row["row"] == leader else "other"
        if row["is_reference"]:
            kind = "hollow"
        readings.append(
            Reading(
                str(row["row"]),
                text,
                place(np.log(_errors(row["mean"]))),
                place(worst[index]) if has_deviation else None,
                place(best[index]) if has_deviation else None,
                kind,
            )
        )
    marks = []
    note = "Bars: one standard deviation over the seeds. Hollow: a reference."
    if np.isfinite(teacher_percent):
        marks.append(place(float(np.log(_errors(teacher_percent)))))
        note = f"Line: the teacher, {teacher_percent:.2f} %. {note}"
    low = f"{max(100 - np.exp(largest), 0.0):.3g} %"
    high = f"{100 - np.exp(smallest):.4g} %"
    return Dots(title, readings, marks, low, high, note)


def gap_dots(title: str, gap: Gap, leader: str, references: Collection[str]) -> Dots | None:
    """Return the share of the gap that each row closes, the largest first; None without any.

    Args:
        title: of the chart.
        gap: headroom and rows.
        leader: name of the row that leads.
        references: names of the rows that are references.
    """
    rows = shown_rows(gap)
    if not rows:
        return None
    found = [row.closed for row in rows if row.closed is not None]
    ends = [value for closed in found for value in (closed.lower, closed.upper)]
    low = min(0.0, max(min(ends), _WIDEST[0])) - 0.05
    high = max(1.0, min(max(ends), _WIDEST[1])) + 0.05

    def place(share: float) -> float:
        return float(np.clip((share - low) / (high - low), 0.0, 1.0))

    readings: list[Reading] = []
    for row, closed in zip(rows, found, strict=True):
        bounds = f"{100 * closed.lower:,.0f} to {100 * closed.upper:,.0f}"
        text = f"{100 * closed.share:,.0f} % ({bounds})".replace("-", "−")
        kind = "used" if row.name == leader else "other"
        if row.name in references:
            kind = "hollow"
        readings.append(
            Reading(
                row.name,
                text,
                place(closed.share),
                place(closed.lower),
                place(closed.upper),
                kind,
            )
        )
    note = (
        f"Lines: 0 %, as good as random images, and 100 %, as “{gap.goal}”. Bars: 95 % intervals. "
        "Hollow: a reference."
    )
    left = f"{100 * low:.0f} %".replace("-", "−")
    return Dots(title, readings, [place(0.0), place(1.0)], left, f"{100 * high:.0f} %", note)


def columns_chart(
    title: str,
    means: pd.DataFrame,
    columns: Sequence[float],
    looks: dict[str, Look],
    teacher_percent: float,
) -> LineChart | None:
    """Return accuracy against labeled images per class, which stand at equal distances.

    Args:
        title: of the chart.
        means: rows of `means_over_seeds` that have a result.
        columns: labeled images of each class.
        looks: by row.
        teacher_percent: drawn as a line; NaN: not known.
    """
    places = {column: float(place) for place, column in enumerate(columns)}
    ends = np.array([0.0, len(columns) - 1.0])
    names = _by_last_accuracy(means)
    lines = []
    for number, name in enumerate(names):
        of_row = means[means["row"] == name].sort_values("labeled_per_class")
        if of_row["labeled_per_class"].isna().all():
            # A row that draws no labeled images has one result for all columns.
            row = of_row.iloc[0]
            lines.append(_accuracy_line(name, looks[name], ends, row["mean"], 0.0, row))
            continue
        # Shifted, or the bars of near-equal rows would hide each other.
        shift = 0.25 * ((number + 0.5) / len(names) - 0.5)
        x = of_row["labeled_per_class"].map(places).to_numpy(float) + shift
        deviations = of_row["std"].fillna(0.0).to_numpy(float)
        accuracy = of_row["mean"].to_numpy(float)
        lines.append(_accuracy_line(name, looks[name], x, accuracy, deviations, of_row.iloc[0]))
    ticks = [(place, f"{column:.0f}") for column, place in places.items()]
    scale = Scale(False, covers=(-0.2, len(columns) - 0.8), ticks=ticks)
    return _chart(title, "labeled images of each class", lines, scale, teacher_percent)


def sweep_chart(
    title: str, x_title: str, points: pd.DataFrame, teacher_percent: float
) -> LineChart | None:
    """Return accuracy over the axis of a sweep.

    Args:
        title: of the chart.
        x_title: label of the axis.
        points: of `split_sweeps`, those that have a result.
        teacher_percent: drawn as a line; NaN: not known.
    """
    ordered = points.sort_values("at")
    names = list(dict.fromkeys(points["row"]))
    looks = looks_of(names)
    lines = []
    for name in reversed(names):
        of_row = ordered[ordered["row"] == name]
        x = of_row["at"].to_numpy(float)
        deviations = of_row["std"].fillna(0.0).to_numpy(float)
        accuracy = of_row["mean"].to_numpy(float)
        lines.append(_accuracy_line(name, looks[name], x, accuracy, deviations, of_row.iloc[0]))
    values = np.sort(points["at"].unique())
    is_log = bool(values[0] > 0 and values[-1] / values[0] >= 10)
    scale = Scale(is_log, ticks=[(float(value), f"{value:,g}") for value in values])
    return _chart(title, x_title, lines, scale, teacher_percent)


def curves_chart(title: str, curves: pd.DataFrame, looks: dict[str, Look]) -> LineChart | None:
    """Return accuracy on watched images against updates.

    Args:
        title: of the chart.
        curves: a panel of `curve_table`.
        looks: by row.
    """
    names = list(dict.fromkeys(curves["row"]))
    unknown = looks_of(names)
    lines = []
    for name in reversed(names):
        of_row = curves[curves["row"] == name].sort_values("updates")
        look = looks.get(name, unknown[name])
        error = _errors(of_row["watched"].to_numpy(float))
        x = of_row["updates"].to_numpy(float)
        lines.append(Line(name, look.role, x, error, look.style, shows_last=False))
    return _chart(title, "updates", lines, None, float("nan"))


def _accuracy_line(
    name: str,
    look: Look,
    x: np.ndarray,
    accuracy: np.ndarray | float,
    deviations: np.ndarray | float,
    row: pd.Series,
) -> Line:
    values = np.broadcast_to(np.asarray(accuracy, dtype=np.float64), x.shape)
    spread = np.broadcast_to(np.asarray(deviations, dtype=np.float64), x.shape)
    style = f"{look.style} hollow".strip() if row["is_reference"] else look.style
    bars = (_errors(values + spread), _errors(values - spread))
    return Line(name, look.role, x, _errors(values), style, bars=bars, shows_last=False)


def _chart(
    title: str,
    x_title: str,
    lines: list[Line],
    x_scale: Scale | None,
    teacher_percent: float,
) -> LineChart | None:
    """Return a chart whose vertical axis holds errors, and is labeled with accuracies."""
    if not lines:
        return None
    if np.isfinite(teacher_percent):
        x = np.concatenate([line.x for line in lines])
        ends = np.array([x.min(), x.max()])
        height = np.full(2, float(_errors(teacher_percent)))
        no_dots = np.zeros(2)
        teacher = Line("teacher", "teacher", ends, height, "dotted", no_dots, shows_last=False)
        lines = [teacher, *lines]
    parts = [part for line in lines for part in (line.y, *(line.bars or ()))]
    errors = np.concatenate(parts)
    low = float(errors.min()) / 1.1
    high = min(float(errors.max()) * 1.1, 100.0)
    scale = Scale(True, (low, high), _accuracy_ticks(low, high), is_reversed=True)
    return line_chart(title, x_title, lines, x_scale=x_scale, y_scale=scale, height=_HEIGHT)


def _accuracy_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return ticks of an axis of errors from low to high, in percent, labeled with accuracies."""
    from matplotlib.ticker import MaxNLocator

    accuracies = [accuracy for accuracy in _ACCURACIES if low <= 100 - accuracy <= high]
    if len(accuracies) < _FEW_TICKS:
        locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
        values = locator.tick_values(100 - high, 100 - low)
        accuracies = [float(value) for value in values if low <= 100 - value <= high]
    # Labels that overlap cannot be read; those of the best accuracies stay.
    least_ratio = (high / low) ** _LEAST_DISTANCE
    kept: list[float] = []
    for accuracy in sorted(accuracies, reverse=True):
        if not kept or 100 - accuracy >= least_ratio * (100 - kept[-1]):
            kept.append(accuracy)
    return [(100 - accuracy, f"{accuracy:.4g}") for accuracy in kept if accuracy < 100]


def _errors(accuracy_percent: np.ndarray | float) -> np.ndarray:
    """Return the errors that stand for accuracies on the axis, in percent."""
    errors: np.ndarray = np.clip(100 - np.asarray(accuracy_percent, float), _LEAST_ERROR, 100)
    return errors


def _by_last_accuracy(means: pd.DataFrame) -> list[str]:
    """Return the names of the rows by the accuracy at the right end, the best last."""
    ordered = means.sort_values("labeled_per_class", na_position="last")
    ends = ordered.groupby("row", sort=False)["mean"].last()
    names: list[str] = ends.sort_values().index.tolist()
    return names
