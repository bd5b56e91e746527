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


# Fixed, so that a rule or method has the same color in every comparison. `role_colors` gives the others a free one.
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
_MARKERS = "osD^vP*X"
_ACCURACY_TICKS = (0, 20, 50, 60, 70, 75, 80, 85, 90, 95, 97, 98, 99, 99.5, 99.8, 99.9)
_LEAST_ERROR = 0.05  # percent: an accuracy of 100 has no place on a logarithmic axis


@dataclass(frozen=True)
class _Look:
    color: str
    marker: str
    is_reference: bool


def plot_comparison(results: pd.DataFrame, params: ComparisonParams) -> Figure:
    """Return test accuracy against labeled images per class, a line a row of the table, bars of one standard deviation.

    The axis is logarithmic in the error, so that 98.5 and 99.0 % stay apart while 40 % is still in the picture. With
    one number of labeled images the rows are listed below each other instead. Each sweep and each panel of curves is
    below.

    Args:
        results: one row a cell, as `comparison.RESULT` has it.
        params: the comparison's title, variants and sweeps.
    """
    means = means_over_seeds(results)
    means = means[means["n_seeds"] > 0]
    of_grid, sweeps = split_sweeps(means, params)
    columns = sorted(of_grid["labeled_per_class"].dropna().unique())
    teacher = 100 * results["teacher_accuracy"].max()
    heights = (
        []
        if of_grid.empty
        else [4.8 if len(columns) > 1 else 1.6 + 0.27 * of_grid["row"].nunique()]
    )
    curves = curve_table(results, params)
    heights += [3.4] * (len(sweeps) + len(curves))
    figure = new_figure(sum(heights))
    panels = iter(figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0])
    if len(of_grid) and len(columns) > 1:
        _lines(next(panels), of_grid, columns, teacher)
    elif len(of_grid):
        _rows(next(panels), of_grid, teacher)
    for label, of_sweep in sweeps.items():
        _sweep(next(panels), of_sweep, label, teacher)
    for title, of_panel in curves.items():
        _curve(next(panels), of_panel, title)
    updates = f"{one_or_range(results['n_updates'])} updates each"
    evidence = f"{params.title}; {seeds_text(means)}, bars: one standard deviation; {updates}"
    finding = (
        _finding(of_grid, columns) if len(of_grid) else f"Accuracy by {' and by '.join(sweeps)}"
    )
    set_title(figure, finding, evidence)
    return figure


def _finding(means: pd.DataFrame, columns: list[float]) -> str:
    last = rivals(means, columns[-1] if columns else None).sort_values("mean", ascending=False)
    if last.empty:
        return "References alone"
    best = last.iloc[0]
    second = (
        f", {best['mean'] - last['mean'].iloc[1]:.2f} points before {last['row'].iloc[1]}"
        if len(last) > 1
        else ""
    )
    where = f" at {columns[-1]:.0f} per class" if len(columns) > 1 else ""
    return f"{best['row']} is best{where} with {best['mean']:.2f} %{second}"


def role_colors(roles: Iterable[str]) -> dict[str, str]:
    """Return the color of each rule or method; one without a color of its own takes the next free one, in their order.

    So a new rule or method needs no entry here. Free colors repeat after the fourth.
    """
    free = itertools.cycle(_OTHER_COLORS)
    colors = {}
    for role in roles:
        colors[role] = _COLORS[role] if role in _COLORS else next(free)
    return colors


def _looks(means: pd.DataFrame) -> dict[str, _Look]:
    """Return the look of each row: the color of its role, and a marker of its own among those of one color."""
    looks: dict[str, _Look] = {}
    colors = role_colors(means["role"].unique())
    for _, row in means.drop_duplicates("row").iterrows():
        n_before = sum(look.color == colors[row["role"]] for look in looks.values())
        marker = _MARKERS[n_before % len(_MARKERS)]
        looks[row["row"]] = _Look(colors[row["role"]], marker, bool(row["is_reference"]))
    return looks


def _lines(axes: Axes, means: pd.DataFrame, columns: list[float], teacher: float) -> None:
    looks, place = _looks(means), {column: position for position, column in enumerate(columns)}
    order = (
        means.sort_values("labeled_per_class", na_position="last")
        .groupby("row", sort=False)["mean"]
        .last()
    )
    names = order.sort_values(ascending=False).index.tolist()
    axes.axhline(
        max(100 - teacher, _LEAST_ERROR),
        color=MUTED,
        linewidth=1,
        linestyle=(0, (1, 2)),
        label="teacher",
    )
    for number, name in enumerate(names):
        look, of_row = looks[name], means[means["row"] == name]
        style = {
            "color": look.color,
            "linestyle": (0, (4, 2)) if look.is_reference else "-",
            "label": name,
        }
        if of_row["labeled_per_class"].isna().all():
            axes.axhline(max(100 - of_row["mean"].iloc[0], _LEAST_ERROR), linewidth=1.4, **style)
            continue
        # beside each other, or the bars of near-equal rows would hide each other
        shift = 0.3 * ((number + 0.5) / len(names) - 0.5)
        x = of_row["labeled_per_class"].map(place).to_numpy(float) + shift
        error, deviation = _error(of_row)
        axes.errorbar(
            x,
            error,
            yerr=deviation,
            marker=look.marker,
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
            **style,
        )
    axes.set_xticks(range(len(columns)), [f"{column:.0f}" for column in columns])
    style_axes(axes, "labeled images of each class", "test accuracy (%)")
    _accuracy_axis(axes, vertical=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


_CURVE_COLORS = (
    STUDENT,
    RANDOM,
    RELEVANT,
    ALERT,
    "#6a3d9a",
    "#56b4e9",
    "#cc79a7",
    INK,
)  # which cross each other
_LINE_COLORS = (STUDENT, RANDOM, RELEVANT, ALERT, *_OTHER_COLORS)


def _sweep(axes: Axes, means: pd.DataFrame, label: str, teacher: float) -> None:
    """Draw a line for each line and objective: the color is the line's, a dash the second objective's."""
    roles = means.groupby("line", sort=False)["role"].first()
    colors = dict(zip(roles.index, _LINE_COLORS * len(roles), strict=False))
    if roles.is_unique:
        colors |= {line: _COLORS[role] for line, role in roles.items() if role in _COLORS}
    dashes = dict(
        zip(means["objective"].unique(), ("-", (0, (4, 2)), (0, (1, 2))) * len(means), strict=False)
    )
    axes.axhline(
        max(100 - teacher, _LEAST_ERROR),
        color=MUTED,
        linewidth=1,
        linestyle=(0, (1, 2)),
        label="teacher",
    )
    for number, (name, of_row) in enumerate(means.sort_values("at").groupby("row", sort=False)):
        line, objective = of_row[["line", "objective"]].iloc[0]
        error, deviation = _error(of_row)
        face = "white" if of_row["is_reference"].all() else colors[line]
        axes.errorbar(
            of_row["at"], error, yerr=deviation, marker=_MARKERS[number % len(_MARKERS)], markersize=5, linewidth=1.5,
            elinewidth=1, capsize=2, color=colors[line], markerfacecolor=face, linestyle=dashes[objective], label=name,
        )  # fmt: skip
    places = np.sort(means["at"].unique())
    if places[0] > 0 and places[-1] / places[0] >= 10:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,g}" for place in places])
    axes.set_xticks([], minor=True)
    style_axes(axes, label, "test accuracy (%)")
    _accuracy_axis(axes, vertical=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _curve(axes: Axes, curves: pd.DataFrame, title: str) -> None:
    """Draw accuracy against updates, a line a row, with a band of one standard deviation."""
    for color, (name, of_row) in zip(
        _CURVE_COLORS * len(curves), curves.groupby("row", sort=False), strict=False
    ):
        error = np.clip(100 - of_row["watched"], _LEAST_ERROR, None)
        deviation = of_row["std"].fillna(0.0)
        axes.plot(of_row["updates"], error, color=color, linewidth=1.5, label=name)
        low = np.clip(error - deviation, 0.8 * _LEAST_ERROR, None)
        axes.fill_between(
            of_row["updates"], low, error + deviation, color=color, alpha=0.15, linewidth=0
        )
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    style_axes(axes, "updates", "accuracy (%)")
    _accuracy_axis(axes, vertical=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _rows(axes: Axes, means: pd.DataFrame, teacher: float) -> None:
    looks = _looks(means)
    ordered = means.sort_values("mean", ascending=False).reset_index(drop=True)
    axes.axvline(max(100 - teacher, _LEAST_ERROR), color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    for place, name in enumerate(ordered["row"]):
        look = looks[name]
        error, deviation = _error(ordered[place : place + 1])
        face = "white" if look.is_reference else look.color
        axes.errorbar(
            error, [place], xerr=deviation, fmt=look.marker, markersize=6, color=look.color, markerfacecolor=face,
            elinewidth=1.2, capsize=2.5,
        )  # fmt: skip
    axes.set_yticks(range(len(ordered)), ordered["row"].tolist(), color=INK)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    style_axes(axes, "test accuracy (%); dotted: teacher, hollow: reference", "", grid="x")
    axes.tick_params(axis="y", length=0)
    _accuracy_axis(axes, vertical=False)


def _error(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) test errors and (2, n) lengths of the bars to both sides, in percent, within the axis."""
    error = np.clip(100 - rows["mean"].to_numpy(float), _LEAST_ERROR, None)
    deviation = rows["std"].fillna(0.0).to_numpy(float)
    return error, np.stack([np.minimum(deviation, error - 0.8 * _LEAST_ERROR), deviation])


def _accuracy_axis(axes: Axes, *, vertical: bool) -> None:
    """Make an axis of errors read as accuracies: logarithmic, better to the top or the right."""
    axis: Any = axes.yaxis if vertical else axes.xaxis
    (axes.set_yscale if vertical else axes.set_xscale)("log")
    (axes.invert_yaxis if vertical else axes.invert_xaxis)()
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in _ACCURACY_TICKS if low <= 100 - tick <= high]
    axis.set_ticks([100 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
