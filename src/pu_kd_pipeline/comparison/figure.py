"""The results of a comparison as a plot with error bars."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.differences import differences_to_best, rank_rows
from pu_kd_pipeline.comparison.gap_panel import draw_gap, gap_panel_height, shown_rows
from pu_kd_pipeline.comparison.looks import (
    CURVE_COLORS,
    fill_color_of,
    looks_by_row,
    marker_of,
    sweep_colors,
)
from pu_kd_pipeline.comparison.tables import (
    curve_table,
    labeled_columns,
    means_over_seeds,
    results_by_length,
    seeds_text,
    split_sweeps,
    updates_text,
)
from pu_kd_pipeline.reporting.style import INK, MUTED, new_figure, set_title, shorten, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pu_kd_pipeline.comparison.differences import RowDifference
    from pu_kd_pipeline.comparison.gap import Gap
    from pu_kd_pipeline.params.comparison import ComparisonParams


_DASHED = (0, (4, 2))
_DOTTED = (0, (1, 2))
_LineStyle = str | tuple[int, tuple[int, int]]
_SWEEP_LINESTYLES: tuple[_LineStyle, ...] = ("-", _DASHED, _DOTTED)

_ACCURACY_TICKS = (0, 20, 50, 60, 70, 75, 80, 85, 90, 95, 97, 98, 99, 99.5, 99.8, 99.9)
_LEAST_ERROR = 0.05  # percent: an accuracy of 100 has no place on a logarithmic axis
_LEAST_BAR_END = 0.8 * _LEAST_ERROR  # bars may reach a little below it, and never to zero

_NAME_CHARACTERS = 40  # more would leave no room for the axis
_GRID_HEIGHT_IN = 4.8
_PANEL_HEIGHT_IN = 3.4


def plot_comparison(
    results: pd.DataFrame, params: ComparisonParams, gaps: Sequence[Gap] = ()
) -> Figure:
    """Return test accuracy against labeled images per class, with bars of one standard deviation.

    There is a line per row of the table; with one number of labeled images the rows are listed
    below each other instead. The gap closed, each sweep and each panel of curves follow below.
    Several lengths of training have panels of their own. The axis is logarithmic in the error, so
    that 98.5 and 99.0 % stay apart while 40 % is still in the picture.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        params: the comparison's title, variants, lengths, sweeps and panels.
        gaps: headroom and gap closed, as `measure_gaps` returns them.
    """
    # The same in every cell, and missing in those that failed.
    teacher_accuracy = results["teacher_accuracy"].max()
    by_length = results_by_length(results, params)
    panels: list[_Panel] = []
    for n_updates, of_length in by_length:
        length = ""
        if len(by_length) > 1:
            length = f"{n_updates:,} updates"
        gaps_here = [gap for gap in gaps if gap.n_updates == n_updates]
        panels += _panels(of_length, params, gaps_here, length, 100 * teacher_accuracy)
    heights = [panel.height_in for panel in panels]
    figure = new_figure(sum(heights))
    subplots = figure.subplots(len(heights), squeeze=False, height_ratios=heights)
    for axes, panel in zip(subplots[:, 0], panels, strict=True):
        panel.draw(axes)
    finding = _finding(by_length, params)
    seeds = seeds_text(means_over_seeds(results))
    n_updates_text = updates_text(results, params)
    evidence = f"{params.title}; {seeds}, bars: one standard deviation; {n_updates_text} each"
    set_title(figure, finding, evidence)
    return figure


class _Panel(NamedTuple):
    height_in: float
    draw: Callable[[Axes], None]


def _panels(
    results: pd.DataFrame,
    params: ComparisonParams,
    gaps: Sequence[Gap],
    length: str,
    teacher_percent: float,
) -> list[_Panel]:
    """Return the panels of one length of training.

    Args:
        length: as a title; "" where the comparison has one.
    """
    means = _finished(results)
    of_grid, sweeps = split_sweeps(means, params)
    columns = labeled_columns(of_grid)
    panels = []
    if len(of_grid):
        draw_grid: Callable[[Axes], None]
        if len(columns) > 1:
            draw_grid = partial(
                _draw_lines, means=of_grid, columns=columns, teacher_percent=teacher_percent
            )
        else:
            draw_grid = partial(_draw_rows, means=of_grid, teacher_percent=teacher_percent)
        panels.append(_Panel(_grid_height(of_grid, columns), _titled(draw_grid, length)))
    looks = looks_by_row(of_grid)
    for gap in gaps:
        # Without headroom there are no shares of it.
        if shown_rows(gap):
            title = _gap_title(gap, length, n_columns=len(columns))
            draw_it = partial(draw_gap, gap=gap, looks=looks, title=title)
            panels.append(_Panel(gap_panel_height(gap), draw_it))
    for label, of_sweep in sweeps.items():
        draw_sweep = partial(
            _draw_sweep, means=of_sweep, label=label, teacher_percent=teacher_percent
        )
        panels.append(_Panel(_PANEL_HEIGHT_IN, _titled(draw_sweep, length)))
    for title, of_panel in curve_table(results, params).items():
        full_title = f"{title}, {length}" if length else title
        draw_curves = partial(_draw_curves, curves=of_panel, title=full_title)
        panels.append(_Panel(_PANEL_HEIGHT_IN, draw_curves))
    return panels


def _finished(results: pd.DataFrame) -> pd.DataFrame:
    """Return the means over seeds of the rows that have a result."""
    means = means_over_seeds(results)
    return means[means["n_seeds"] > 0]


def _titled(draw: Callable[[Axes], None], title: str) -> Callable[[Axes], None]:
    """Return a function that draws the panel below a title, if there is one."""

    def draw_with_title(axes: Axes) -> None:
        draw(axes)
        if title:
            axes.set_title(title, loc="left", fontsize=10, color=INK)

    return draw_with_title


def _gap_title(gap: Gap, length: str, n_columns: int) -> str:
    parts = ["gap closed"]
    if length:
        parts.append(length)
    if n_columns > 1:
        parts.append(f"{gap.labeled_per_class:.0f} labeled images of each class")
    return ", ".join(parts)


def _grid_height(means: pd.DataFrame, columns: list[float]) -> float:
    """Return the height of the grid's panel in inches: of the plot, or of the list of rows."""
    if len(columns) > 1:
        return _GRID_HEIGHT_IN
    n_rows = means["row"].nunique()
    return 1.6 + 0.27 * n_rows


def _finding(by_length: Sequence[tuple[int | None, pd.DataFrame]], params: ComparisonParams) -> str:
    """Return the finding of the longest training with a result: of its rows, or its sweeps."""
    with_result = [each for each in by_length if len(_finished(each[1]))]
    n_updates, results = (with_result or by_length)[-1]
    of_grid, sweeps = split_sweeps(_finished(results), params)
    if not len(of_grid):
        axis_labels = " and by ".join(sweeps)
        return f"Accuracy by {axis_labels}"
    where = ""
    columns = labeled_columns(of_grid)
    if len(columns) > 1:
        where = f" at {columns[-1]:.0f} per class"
    if len(by_length) > 1:
        where += f" after {n_updates:,} updates"
    return _finding_of_rows(results, of_grid, columns, where)


def _finding_of_rows(
    results: pd.DataFrame, means: pd.DataFrame, columns: list[float], where: str
) -> str:
    last_column = None
    if columns:
        last_column = columns[-1]
    ranking = rank_rows(results, means, last_column).rows
    if ranking.empty:
        return "References alone"
    best = ranking.iloc[0]
    best_name = best["row"]
    best_percent = best["mean"]
    finding = f"{best_name} leads{where} with {best_percent:.2f} %"
    if len(ranking) > 1:
        second = ranking.iloc[1]
        second_name = second["row"]
        lead_points = best_percent - second["mean"]
        finding += f", {lead_points:.2f} points before {second_name}"
        tested = differences_to_best(results, means, last_column).get(second_name)
        finding += f" ({_verdict(tested)})"
    return finding


def _verdict(difference: RowDifference | None) -> str:
    """Return whether chance explains the lead of the best row."""
    if difference is None:
        return "not tested"
    if difference.accuracy.is_significant and difference.accuracy.upper >= 0:
        return "behind on the seeds that both have"
    if not difference.accuracy.is_significant:
        return "chance can explain it"
    if difference.n_seeds == 1:
        return "chance in the test images does not explain it; one seed"
    return "chance does not explain it"


def _draw_lines(
    axes: Axes, means: pd.DataFrame, columns: list[float], teacher_percent: float
) -> None:
    """Draw a line per row over the numbers of labeled images, which stand at equal distances."""
    looks = looks_by_row(means)
    place = {column: position for position, column in enumerate(columns)}
    names = _names_in_legend_order(means)
    _draw_teacher(axes, teacher_percent)
    for number, name in enumerate(names):
        look = looks[name]
        is_of_row = means["row"] == name
        of_row = means[is_of_row]
        n_labeled = of_row["labeled_per_class"]
        linestyle: _LineStyle = "-"
        if look.is_reference:
            linestyle = _DASHED
        # A row that draws no labeled images has one result for all columns.
        if n_labeled.isna().all():
            accuracy_percent = of_row["mean"].iloc[0]
            height = _error_percent(accuracy_percent)
            axes.axhline(height, linewidth=1.4, color=look.color, linestyle=linestyle, label=name)
            continue
        # Shifted, or the bars of near-equal rows would hide each other.
        position_in_legend = (number + 0.5) / len(names)
        shift = 0.3 * (position_in_legend - 0.5)
        places = n_labeled.map(place).to_numpy(float)
        x = places + shift
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
    tick_labels = [f"{column:.0f}" for column in columns]
    axes.set_xticks(range(len(columns)), tick_labels)
    _finish(axes, "labeled images of each class", "test accuracy (%)")


def _names_in_legend_order(means: pd.DataFrame) -> list[str]:
    """Return the names of the rows as the right ends of their lines stand, the best first."""
    by_column = means.sort_values("labeled_per_class", na_position="last")
    rows = by_column.groupby("row", sort=False)
    ends = rows["mean"].last()
    best_first = ends.sort_values(ascending=False)
    return best_first.index.tolist()


def _draw_sweep(axes: Axes, means: pd.DataFrame, label: str, teacher_percent: float) -> None:
    """Draw accuracy over the sweep's axis: colors stand for lines, dashes for objectives."""
    colors = sweep_colors(means)
    objectives = means["objective"].unique()
    linestyles = dict(zip(objectives, itertools.cycle(_SWEEP_LINESTYLES), strict=False))
    _draw_teacher(axes, teacher_percent)
    by_place = means.sort_values("at")
    rows = by_place.groupby("row", sort=False)
    for number, (name, of_row) in enumerate(rows):
        first_point = of_row.iloc[0]
        color = colors[first_point["line"]]
        linestyle = linestyles[first_point["objective"]]
        is_reference = bool(of_row["is_reference"].all())
        fill_color = fill_color_of(color, is_reference)
        error, bars = _error_and_bars(of_row)
        axes.errorbar(
            of_row["at"],
            error,
            yerr=bars,
            marker=marker_of(number),
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
            color=color,
            markerfacecolor=fill_color,
            linestyle=linestyle,
            label=name,
        )
    places = np.sort(means["at"].unique())
    if _needs_log_axis(places):
        axes.set_xscale("log")
    tick_labels = [f"{place:,g}" for place in places]
    axes.set_xticks(places, tick_labels)
    axes.set_xticks([], minor=True)
    _finish(axes, label, "test accuracy (%)")


def _needs_log_axis(places: np.ndarray) -> bool:
    """Return whether positive places, lowest first, span a factor of ten or more."""
    lowest = places[0]
    highest = places[-1]
    if lowest <= 0:
        return False
    return bool(highest / lowest >= 10)


def _draw_curves(axes: Axes, curves: pd.DataFrame, title: str) -> None:
    """Draw accuracy against updates, a line per row, with a band of one standard deviation."""
    rows = curves.groupby("row", sort=False)
    colors = itertools.cycle(CURVE_COLORS)
    for name, of_row in rows:
        color = next(colors)
        updates = of_row["updates"]
        exact_error = 100 - of_row["watched"]
        error = np.clip(exact_error, _LEAST_ERROR, None)
        deviation = of_row["std"].fillna(0.0)  # one seed has none
        low = np.clip(error - deviation, _LEAST_BAR_END, None)
        high = error + deviation
        axes.plot(updates, error, color=color, linewidth=1.5, label=name)
        axes.fill_between(updates, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    _finish(axes, "updates", "accuracy (%)")


def _draw_rows(axes: Axes, means: pd.DataFrame, teacher_percent: float) -> None:
    """Draw the rows below each other, the best on top."""
    looks = looks_by_row(means)
    best_first = means.sort_values("mean", ascending=False)
    ordered = best_first.reset_index(drop=True)
    teacher_error = _error_percent(teacher_percent)
    axes.axvline(teacher_error, color=MUTED, linewidth=1, linestyle=_DOTTED)
    for place, name in enumerate(ordered["row"]):
        look = looks[name]
        fill_color = fill_color_of(look.color, look.is_reference)
        of_row = ordered[place : place + 1]
        error, bars = _error_and_bars(of_row)
        axes.errorbar(
            error,
            [place],
            xerr=bars,
            fmt=look.marker,
            markersize=6,
            color=look.color,
            markerfacecolor=fill_color,
            elinewidth=1.2,
            capsize=2.5,
        )
    n_rows = len(ordered)
    names = [shorten(name, _NAME_CHARACTERS) for name in ordered["row"]]
    axes.set_yticks(range(n_rows), names, color=INK)
    # From the last row to the first: the best is on top.
    axes.set_ylim(n_rows - 0.4, -0.6)
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
    accuracy = rows["mean"].to_numpy(float)
    error = np.clip(100 - accuracy, _LEAST_ERROR, None)
    known_deviation = rows["std"].fillna(0.0)
    deviation = known_deviation.to_numpy(float)
    longest_to_better = error - _LEAST_BAR_END
    to_better = np.minimum(deviation, longest_to_better)
    bars = np.stack([to_better, deviation])
    return error, bars


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    """Label a panel whose y axis holds errors, turn the axis to accuracies, and add the legend."""
    style_axes(axes, x_label, y_label)
    axes.set_yscale("log")
    axes.invert_yaxis()
    _show_accuracies(axes.yaxis)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _show_accuracies(axis: Any) -> None:
    """Label a logarithmic axis of errors with the accuracies, in percent."""
    # An inverted axis returns its larger end first.
    low, high = sorted(axis.get_view_interval())
    errors = []
    labels = []
    for accuracy in _ACCURACY_TICKS:
        error = 100 - accuracy
        if low <= error <= high:
            errors.append(error)
            labels.append(f"{accuracy:g}")
    axis.set_ticks(errors, labels)
    axis.set_ticks([], minor=True)
