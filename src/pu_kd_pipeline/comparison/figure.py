"""The results of a comparison as a plot with error bars."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.tables import (
    curve_table,
    means_over_seeds,
    one_or_range,
    rivals,
    seeds_text,
    split_sweeps,
)
from pu_kd_pipeline.reporting.style import (
    ALERT,
    INK,
    MUTED,
    RANDOM,
    RELEVANT,
    STUDENT,
    TEACHER,
    new_figure,
    set_title,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pu_kd_pipeline.params.comparison import ComparisonParams


# Fixed, so that a rule or method has the same color in every comparison. `role_colors` gives a free
# one to those that are not listed.
_COLORS = {
    "nnpu": STUDENT,
    "random": RANDOM,
    "oracle": RELEVANT,
    "original": TEACHER,
    "confident": "#cc79a7",
    "disagreement": "#6a3d9a",
    "all": "#56b4e9",
    "fitnet": ALERT,
    "fskd": "#8c5a2b",
    "labeled_only": "#9a9a9a",
}
_OTHER_COLORS = ("#b5a800", "#5f0f40", "#2f6f6f", "#7f9c3b")
_SWEEP_COLORS = (STUDENT, RANDOM, RELEVANT, ALERT, *_OTHER_COLORS)
# Curves cross each other, so that neighbors in this list differ more than those of the lines.
_CURVE_COLORS = (STUDENT, RANDOM, RELEVANT, ALERT, "#6a3d9a", "#56b4e9", "#cc79a7", INK)

_MARKERS = "osD^vP*X"
_DASHED = (0, (4, 2))
_DOTTED = (0, (1, 2))
_SWEEP_LINESTYLES = ("-", _DASHED, _DOTTED)

_ACCURACY_TICKS = (0, 20, 50, 60, 70, 75, 80, 85, 90, 95, 97, 98, 99, 99.5, 99.8, 99.9)
_LEAST_ERROR = 0.05  # percent: an accuracy of 100 has no place on a logarithmic axis
_LEAST_BAR_END = 0.8 * _LEAST_ERROR  # bars may reach a little below it, and never to zero

_GRID_HEIGHT_IN = 4.8
_PANEL_HEIGHT_IN = 3.4


@dataclass(frozen=True)
class _Look:
    color: str
    marker: str
    is_reference: bool


def plot_comparison(results: pd.DataFrame, params: ComparisonParams) -> Figure:
    """Return test accuracy against labeled images per class, with bars of one standard deviation.

    There is a line per row of the table; with one number of labeled images the rows are listed
    below each other instead. Each sweep and each panel of curves follows below. The axis is
    logarithmic in the error, so that 98.5 and 99.0 % stay apart while 40 % is still in the picture.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        params: the comparison's title, variants, sweeps and panels.
    """
    means = means_over_seeds(results)
    means = means[means["n_seeds"] > 0]
    of_grid, sweeps = split_sweeps(means, params)
    columns = sorted(of_grid["labeled_per_class"].dropna().unique())
    curves = curve_table(results, params)
    heights = [_PANEL_HEIGHT_IN] * (len(sweeps) + len(curves))
    if len(of_grid):
        heights.insert(0, _grid_height(of_grid, columns))
    figure = new_figure(sum(heights))
    subplots = figure.subplots(len(heights), squeeze=False, height_ratios=heights)
    panels = iter(subplots[:, 0])
    teacher_percent = 100 * results["teacher_accuracy"].max()
    if len(of_grid) and len(columns) > 1:
        _draw_lines(next(panels), of_grid, columns, teacher_percent)
    elif len(of_grid):
        _draw_rows(next(panels), of_grid, teacher_percent)
    for label, of_sweep in sweeps.items():
        _draw_sweep(next(panels), of_sweep, label, teacher_percent)
    for title, of_panel in curves.items():
        _draw_curves(next(panels), of_panel, title)
    finding = f"Accuracy by {' and by '.join(sweeps)}"
    if len(of_grid):
        finding = _finding(of_grid, columns)
    updates = f"{one_or_range(results['n_updates'])} updates each"
    evidence = f"{params.title}; {seeds_text(means)}, bars: one standard deviation; {updates}"
    set_title(figure, finding, evidence)
    return figure


def _grid_height(means: pd.DataFrame, columns: list[float]) -> float:
    """Return the height of the grid's panel in inches: of the plot, or of the list of rows."""
    if len(columns) > 1:
        return _GRID_HEIGHT_IN
    return 1.6 + 0.27 * means["row"].nunique()


def _finding(means: pd.DataFrame, columns: list[float]) -> str:
    last_column = columns[-1] if columns else None
    ranking = rivals(means, last_column).sort_values("mean", ascending=False)
    if ranking.empty:
        return "References alone"
    best = ranking.iloc[0]
    where = ""
    if len(columns) > 1:
        where = f" at {columns[-1]:.0f} per class"
    finding = f"{best['row']} is best{where} with {best['mean']:.2f} %"
    if len(ranking) > 1:
        second = ranking.iloc[1]
        finding += f", {best['mean'] - second['mean']:.2f} points before {second['row']}"
    return finding


def role_colors(roles: Iterable[str]) -> dict[str, str]:
    """Return the color of each rule or method.

    Those without a color of their own take a free one each, in the order given, so that a new rule
    or method needs no entry here. Free colors repeat after the fourth.
    """
    free = itertools.cycle(_OTHER_COLORS)
    colors = {}
    for role in roles:
        colors[role] = _COLORS[role] if role in _COLORS else next(free)
    return colors


def _looks(means: pd.DataFrame) -> dict[str, _Look]:
    """Return the look of each row: the color of its role, and a marker that no other of it has."""
    looks: dict[str, _Look] = {}
    colors = role_colors(means["role"].unique())
    for _, row in means.drop_duplicates("row").iterrows():
        color = colors[row["role"]]
        n_before = [look.color for look in looks.values()].count(color)
        marker = _MARKERS[n_before % len(_MARKERS)]
        looks[row["row"]] = _Look(color, marker, bool(row["is_reference"]))
    return looks


def _draw_lines(
    axes: Axes, means: pd.DataFrame, columns: list[float], teacher_percent: float
) -> None:
    """Draw a line per row over the numbers of labeled images, which stand at equal distances."""
    looks = _looks(means)
    place = {column: position for position, column in enumerate(columns)}
    # The legend follows the right ends of the lines, the best first.
    by_column = means.sort_values("labeled_per_class", na_position="last")
    ends = by_column.groupby("row", sort=False)["mean"].last()
    names = ends.sort_values(ascending=False).index.tolist()
    _draw_teacher(axes, teacher_percent)
    for number, name in enumerate(names):
        look = looks[name]
        of_row = means[means["row"] == name]
        linestyle = _DASHED if look.is_reference else "-"
        if of_row["labeled_per_class"].isna().all():
            height = _error_percent(of_row["mean"].iloc[0])
            axes.axhline(height, linewidth=1.4, color=look.color, linestyle=linestyle, label=name)
            continue
        # Shifted, or the bars of near-equal rows would hide each other.
        shift = 0.3 * ((number + 0.5) / len(names) - 0.5)
        x = of_row["labeled_per_class"].map(place).to_numpy(float) + shift
        error, bars = _error_and_bars(of_row)
        axes.errorbar(
            x,
            error,
            yerr=bars,
            marker=look.marker,
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
            color=look.color,
            linestyle=linestyle,
            label=name,
        )
    axes.set_xticks(range(len(columns)), [f"{column:.0f}" for column in columns])
    _finish(axes, "labeled images of each class", "test accuracy (%)")


def _draw_sweep(axes: Axes, means: pd.DataFrame, label: str, teacher_percent: float) -> None:
    """Draw accuracy over the sweep's axis: colors stand for lines, dashes for objectives."""
    colors = _sweep_colors(means)
    objectives = means["objective"].unique()
    linestyles = dict(zip(objectives, itertools.cycle(_SWEEP_LINESTYLES), strict=False))
    _draw_teacher(axes, teacher_percent)
    rows = means.sort_values("at").groupby("row", sort=False)
    for number, (name, of_row) in enumerate(rows):
        line, objective = of_row[["line", "objective"]].iloc[0]
        color = colors[line]
        error, bars = _error_and_bars(of_row)
        axes.errorbar(
            of_row["at"],
            error,
            yerr=bars,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
            color=color,
            markerfacecolor="white" if of_row["is_reference"].all() else color,
            linestyle=linestyles[objective],
            label=name,
        )
    places = np.sort(means["at"].unique())
    if places[0] > 0 and places[-1] / places[0] >= 10:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,g}" for place in places])
    axes.set_xticks([], minor=True)
    _finish(axes, label, "test accuracy (%)")


def _sweep_colors(means: pd.DataFrame) -> dict[str, str]:
    """Return the color of each line: of its role, if no other line has the same role."""
    roles = means.groupby("line", sort=False)["role"].first()
    colors = dict(zip(roles.index, itertools.cycle(_SWEEP_COLORS), strict=False))
    if roles.is_unique:
        for line, role in roles.items():
            colors[line] = _COLORS.get(role, colors[line])
    return colors


def _draw_curves(axes: Axes, curves: pd.DataFrame, title: str) -> None:
    """Draw accuracy against updates, a line per row, with a band of one standard deviation."""
    rows = curves.groupby("row", sort=False)
    for color, (name, of_row) in zip(itertools.cycle(_CURVE_COLORS), rows, strict=False):
        updates = of_row["updates"]
        error = np.clip(100 - of_row["watched"], _LEAST_ERROR, None)
        deviation = of_row["std"].fillna(0.0)
        low = np.clip(error - deviation, _LEAST_BAR_END, None)
        axes.plot(updates, error, color=color, linewidth=1.5, label=name)
        axes.fill_between(updates, low, error + deviation, color=color, alpha=0.15, linewidth=0)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    _finish(axes, "updates", "accuracy (%)")


def _draw_rows(axes: Axes, means: pd.DataFrame, teacher_percent: float) -> None:
    """Draw the rows below each other, the best on top."""
    looks = _looks(means)
    ordered = means.sort_values("mean", ascending=False).reset_index(drop=True)
    height = _error_percent(teacher_percent)
    axes.axvline(height, color=MUTED, linewidth=1, linestyle=_DOTTED)
    for place, name in enumerate(ordered["row"]):
        look = looks[name]
        error, bars = _error_and_bars(ordered[place : place + 1])
        axes.errorbar(
            error,
            [place],
            xerr=bars,
            fmt=look.marker,
            markersize=6,
            color=look.color,
            markerfacecolor="white" if look.is_reference else look.color,
            elinewidth=1.2,
            capsize=2.5,
        )
    axes.set_yticks(range(len(ordered)), ordered["row"].tolist(), color=INK)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    style_axes(axes, "test accuracy (%); dotted: teacher, hollow: reference", "", grid="x")
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    axes.invert_xaxis()
    _show_accuracies(axes.xaxis)


def _draw_teacher(axes: Axes, teacher_percent: float) -> None:
    height = _error_percent(teacher_percent)
    axes.axhline(height, color=MUTED, linewidth=1, linestyle=_DOTTED, label="teacher")


def _error_percent(accuracy_percent: float) -> float:
    """Return the error that stands for an accuracy on the axis, in percent."""
    return max(100 - accuracy_percent, _LEAST_ERROR)


def _error_and_bars(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) test errors and (2, n) lengths of the bars to both sides, within the axis.

    Both are in percent.
    """
    error = np.clip(100 - rows["mean"].to_numpy(float), _LEAST_ERROR, None)
    deviation = rows["std"].fillna(0.0).to_numpy(float)
    to_better = np.minimum(deviation, error - _LEAST_BAR_END)
    return error, np.stack([to_better, deviation])


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    """Label a panel whose y axis holds errors, turn the axis to accuracies, and add the legend."""
    style_axes(axes, x_label, y_label)
    axes.set_yscale("log")
    axes.invert_yaxis()
    _show_accuracies(axes.yaxis)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _show_accuracies(axis: Any) -> None:
    """Label a logarithmic axis of errors with the accuracies, in percent."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in _ACCURACY_TICKS if low <= 100 - tick <= high]
    errors = [100 - tick for tick in ticks]
    axis.set_ticks(errors, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
