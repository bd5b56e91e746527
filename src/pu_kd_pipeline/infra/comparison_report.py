"""The results of a comparison side by side: means over seeds, a page of Markdown tables, and a plot with error bars.

Accuracies are percent here. A reference is a row that uses what its users do not have (the original images, the pool's
truth): it is shown, and never marked as the best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.infra.figures import (
    ALERT,
    INK,
    MUTED,
    RANDOM,
    RELEVANT,
    STUDENT,
    TEACHER,
    _dress,
    _figure,
    _title,
    percent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pu_kd_pipeline.params import ComparisonParams

_SAME_ROW = ["variant", "objective"]
# Of a rule or a method, as far as they are known here; the others take what is left.
_COLOURS = {
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
_OTHER_COLOURS = ("#b5a800", "#5f0f40", "#2f6f6f", "#7f9c3b")
_MARKERS = "osD^vP*X"
_ACCURACY_TICKS = (0, 20, 50, 60, 70, 75, 80, 85, 90, 95, 97, 98, 99, 99.5, 99.8, 99.9)
_LEAST_ERROR = 0.05  # percent: an accuracy of 100 has no place on a logarithmic axis


def means_over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each variant, objective and number of labeled images per class, in the order of the grid.

    Columns: `variant`, `objective`, `labeled_per_class` (null where no labeled image is used), `row` (what the row is
    called), `role` (its rule or method), `is_reference`, `n_seeds` (those that have a result), `mean` and `std` of the
    test accuracy in percent (std of the sample; NaN for one seed), and the means of the other numbers.

    Args:
        results: one row a cell, as `comparison.RESULT` has it.
    """
    results = results.assign(percent=100 * results["accuracy"])
    groups = results.groupby([*_SAME_ROW, "labeled_per_class"], dropna=False, sort=False)
    percents = groups["percent"]
    first = groups[["rule", "method", "is_reference"]].first()
    numbers = ["agreement", "auc", "precision", "recall", "class_prior", "n_selected", "pu_seconds", "seconds"]
    table = groups[numbers].mean().assign(mean=percents.mean(), std=percents.std(ddof=1), n_seeds=percents.count())
    table["role"] = first["rule"].fillna(first["method"])
    table["is_reference"] = first["is_reference"]
    table = table.reset_index()
    several = table.groupby("variant")["objective"].transform("nunique") > 1
    table["row"] = table["variant"].where(~several, table["variant"] + " · " + table["objective"])
    return table


# --- Markdown ---------------------------------------------------------------------------------------------------------


def comparison_page(results: pd.DataFrame, params: ComparisonParams) -> str:
    """Return the page: accuracies by variant and labeled images, sweeps, selections, and what could not be computed."""
    means = means_over_seeds(results)
    of_grid, sweeps = _apart(means, params)
    parts = [f"# {params.title}", _facts(results, means)]
    if len(of_grid):
        parts.append(_markdown(_accuracy_rows(of_grid)))
    for label, of_sweep in sweeps.items():
        parts += [f"## By {label}", _markdown(_sweep_rows(of_sweep))]
    for title, curves in _curves(results, params).items():
        parts += [f"## Accuracy by updates: {title}", _CURVES_FACTS, _markdown(_curve_rows(curves))]
    selections = means[means["n_selected"] > 0]
    if len(selections):
        parts += ["## What was selected", _markdown(_selection_rows(selections))]
    if notes := [f"- {name}: {note}" for name, note in _notes(results)]:
        parts += ["## What to know of them", "\n".join(notes)]
    if failures := [f"- {name}: {reason}" for name, reason in _failures(results)]:
        again = "To try a cell again, delete its file in `comparison_cells`."
        parts += ["## What could not be computed", "\n".join(failures), again]
    return "\n\n".join(parts) + "\n"


def _facts(results: pd.DataFrame, means: pd.DataFrame) -> str:
    facts = [
        f"Test accuracy in percent, mean ± standard deviation over {_seeds(means)}; columns: labeled images per class.",
        f"Every student got {_one_or_range(results['n_updates'])} updates.",
    ]
    if results["teacher_accuracy"].notna().any():
        facts.append(
            f"Teacher: {100 * results['teacher_accuracy'].max():.2f}; {int(results['n_test'].max()):,} test images."
        )
    facts.append("**Bold**: the best of a column.")
    if means["is_reference"].any():
        facts.append("*Italic*: a reference, which uses the original images or the pool's truth.")
    return " ".join(facts)


def _apart(means: pd.DataFrame, params: ComparisonParams) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the rows of the grid and, by the label of their axis, those of each sweep with `line` and `at`."""
    points = {name: variant.sweep for name, variant in params.variants.items() if variant is not None and variant.sweep}
    if not points:
        return means, {}
    is_point = means["variant"].isin(list(points))
    of_sweeps = means[is_point].assign(
        sweep=means["variant"].map({name: point.name for name, point in points.items()}),
        line=means["variant"].map({name: point.line for name, point in points.items()}),
        at=means["variant"].map({name: point.at for name, point in points.items()}),
    )
    several = of_sweeps.groupby(["sweep", "line"])["objective"].transform("nunique") > 1
    of_sweeps["row"] = of_sweeps["line"].where(~several, of_sweeps["line"] + " · " + of_sweeps["objective"])
    by_label = {label: of_sweeps[of_sweeps["sweep"] == name] for name, label in params.sweeps.items()}
    return means[~is_point], {label: rows for label, rows in by_label.items() if len(rows)}


def _sweep_rows(means: pd.DataFrame) -> list[list[str]]:
    places = sorted(means["at"].unique())
    rows = [["", *(f"{place:,g}" for place in places)]]
    for name, of_row in means.groupby("row", sort=False):
        cells = [f"*{name}*" if of_row["is_reference"].all() else str(name)]
        for place in places:
            here = of_row[of_row["at"] == place]
            cells.append(_with_deviation(here.iloc[0], means["n_seeds"].max()) if len(here) else "–")
        rows.append(cells)
    return rows


_CURVES_FACTS = "In percent, of training images of the teacher that no student sees; columns: updates so far."


def _curves(results: pd.DataFrame, params: ComparisonParams) -> dict[str, pd.DataFrame]:
    """Return by title of a panel the mean `watched` and its deviation `std` of each `row` after `updates`."""
    if params.curves is None:
        return {}
    points = results.dropna(subset=["curve_updates"]).explode(["curve_updates", "curve_accuracy"])
    panels = {}
    for title, variants in params.curves.panels.items():
        of_panel = points[points["variant"].isin(variants)]
        if of_panel.empty:
            continue
        several = of_panel.groupby("variant")["objective"].transform("nunique") > 1
        row = of_panel["variant"].where(~several, of_panel["variant"] + " · " + of_panel["objective"])
        percents = 100 * of_panel["curve_accuracy"].astype(float)
        groups = percents.groupby(
            [row.rename("row"), of_panel["curve_updates"].astype(int).rename("updates")], sort=False
        )
        panels[title] = pd.DataFrame({"watched": groups.mean(), "std": groups.std(ddof=1)}).reset_index()
    return panels


def _curve_rows(curves: pd.DataFrame) -> list[list[str]]:
    updates = sorted(curves["updates"].unique())
    rows = [["", *(f"{update:,}" for update in updates)]]
    for name, of_row in curves.groupby("row", sort=False):
        known = of_row.set_index("updates")["watched"]
        rows.append([str(name), *(f"{known[update]:.2f}" if update in known else "–" for update in updates)])
    return rows


def _accuracy_rows(means: pd.DataFrame) -> list[list[str]]:
    columns = sorted(means["labeled_per_class"].dropna().unique())
    rows = [["", *(f"{column:.0f}" for column in columns)]]
    for name, of_row in means.groupby("row", sort=False):
        is_reference = bool(of_row["is_reference"].iloc[0])
        cells = [f"*{name}*" if is_reference else str(name)]
        for column in columns:
            here = of_row[of_row["labeled_per_class"].isna() | (of_row["labeled_per_class"] == column)]
            rivals = _rivals(means, column)["mean"]
            text = _with_deviation(here.iloc[0], means["n_seeds"].max()) if len(here) else "–"
            is_best = len(here) and not is_reference and here["mean"].iloc[0] == rivals.max()
            cells.append(f"**{text}**" if is_best else text)
        rows.append(cells)
    return rows


def _rivals(means: pd.DataFrame, column: float | None) -> pd.DataFrame:
    """Return the rows that may be the best of a column: no references; a row without labeled images is in each."""
    is_here = means["labeled_per_class"].isna() | (means["labeled_per_class"] == column)
    return means[is_here & ~means["is_reference"]]


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.0f}"


def _with_deviation(row: pd.Series, n_seeds: int) -> str:
    if not row["n_seeds"]:
        return "–"
    deviation = f" ± {row['std']:.2f}" if np.isfinite(row["std"]) else ""
    return f"{row['mean']:.2f}{deviation}" + (f" ({row['n_seeds']:.0f})" if row["n_seeds"] < n_seeds else "")


def _selection_rows(means: pd.DataFrame) -> list[list[str]]:
    header = ["", "labeled per class", "images", "AUC", "precision", "recall", "class prior", "PU (s)", "student (s)"]
    rows = [header]
    for _, row in means.iterrows():
        shares = [percent(row[name]) for name in ("precision", "recall")]
        auc, prior = ("–" if np.isnan(row[name]) else f"{row[name]:.3f}" for name in ("auc", "class_prior"))
        seconds = ["–" if np.isnan(row[name]) else f"{row[name]:.0f}" for name in ("pu_seconds", "seconds")]
        rows.append(
            [row["row"], _number(row["labeled_per_class"]), f"{row['n_selected']:,.0f}", auc, *shares, prior, *seconds]
        )
    return rows


def _notes(results: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield a row and what its first seed that has one notes."""
    for (variant, objective), of_row in results.groupby(_SAME_ROW, sort=False):
        notes = of_row["note"].dropna()
        if len(notes):
            yield f"{variant}, {objective} ({len(notes)} of {len(of_row)} students)", notes.iloc[0]


def _failures(results: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for _, row in results[results["failure"].notna()].iterrows():
        labeled = "" if pd.isna(row["labeled_per_class"]) else f", {row['labeled_per_class']:.0f} per class"
        yield f"{row['variant']}, {row['objective']}{labeled}, seed {row['seed']}", row["failure"]


def _markdown(rows: list[list[str]]) -> str:
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([header, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body])


def _seeds(means: pd.DataFrame) -> str:
    n = int(means["n_seeds"].max())
    return f"{n} seed{'s' * (n != 1)}"


def _one_or_range(values: pd.Series) -> str:
    return f"{values.min():,}" if values.nunique() == 1 else f"{values.min():,} to {values.max():,}"


# --- the plot ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    colour: str
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
    of_grid, sweeps = _apart(means, params)
    columns = sorted(of_grid["labeled_per_class"].dropna().unique())
    teacher = 100 * results["teacher_accuracy"].max()
    heights = [] if of_grid.empty else [4.8 if len(columns) > 1 else 1.6 + 0.27 * of_grid["row"].nunique()]
    curves = _curves(results, params)
    heights += [3.4] * (len(sweeps) + len(curves))
    figure = _figure(sum(heights))
    panels = iter(figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0])
    if len(of_grid) and len(columns) > 1:
        _lines(next(panels), of_grid, columns, teacher)
    elif len(of_grid):
        _rows(next(panels), of_grid, teacher)
    for label, of_sweep in sweeps.items():
        _sweep(next(panels), of_sweep, label, teacher)
    for title, of_panel in curves.items():
        _curve(next(panels), of_panel, title)
    updates = f"{_one_or_range(results['n_updates'])} updates each"
    evidence = f"{params.title}; {_seeds(means)}, bars: one standard deviation; {updates}"
    finding = _finding(of_grid, columns) if len(of_grid) else f"Accuracy by {' and by '.join(sweeps)}"
    _title(figure, finding, evidence)
    return figure


def _finding(means: pd.DataFrame, columns: list[float]) -> str:
    last = _rivals(means, columns[-1] if columns else None).sort_values("mean", ascending=False)
    if last.empty:
        return "References alone"
    best = last.iloc[0]
    second = f", {best['mean'] - last['mean'].iloc[1]:.2f} points before {last['row'].iloc[1]}" if len(last) > 1 else ""
    where = f" at {columns[-1]:.0f} per class" if len(columns) > 1 else ""
    return f"{best['row']} is best{where} with {best['mean']:.2f} %{second}"


def _looks(means: pd.DataFrame) -> dict[str, _Look]:
    """Return the look of each row: the colour of its role, and a marker of its own among those of one colour."""
    looks: dict[str, _Look] = {}
    others = iter(_OTHER_COLOURS * len(means))
    colours = dict(_COLOURS)
    for _, row in means.drop_duplicates("row").iterrows():
        if row["role"] not in colours:
            colours[row["role"]] = next(others)
        n_before = sum(look.colour == colours[row["role"]] for look in looks.values())
        marker = _MARKERS[n_before % len(_MARKERS)]
        looks[row["row"]] = _Look(colours[row["role"]], marker, bool(row["is_reference"]))
    return looks


def _lines(axes: Axes, means: pd.DataFrame, columns: list[float], teacher: float) -> None:
    looks, place = _looks(means), {column: position for position, column in enumerate(columns)}
    order = means.sort_values("labeled_per_class", na_position="last").groupby("row", sort=False)["mean"].last()
    names = order.sort_values(ascending=False).index.tolist()
    axes.axhline(max(100 - teacher, _LEAST_ERROR), color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="teacher")
    for number, name in enumerate(names):
        look, of_row = looks[name], means[means["row"] == name]
        style = {"color": look.colour, "linestyle": (0, (4, 2)) if look.is_reference else "-", "label": name}
        if of_row["labeled_per_class"].isna().all():
            axes.axhline(max(100 - of_row["mean"].iloc[0], _LEAST_ERROR), linewidth=1.4, **style)
            continue
        # beside each other, or the bars of near-equal rows would hide each other
        shift = 0.3 * ((number + 0.5) / len(names) - 0.5)
        x = of_row["labeled_per_class"].map(place).to_numpy(float) + shift
        error, deviation = _error(of_row)
        axes.errorbar(
            x, error, yerr=deviation, marker=look.marker, markersize=5, linewidth=1.5, elinewidth=1, capsize=2, **style
        )
    axes.set_xticks(range(len(columns)), [f"{column:.0f}" for column in columns])
    _dress(axes, "labeled images of each class", "test accuracy (%)")
    _accuracy_axis(axes, vertical=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


_CURVE_COLOURS = (STUDENT, RANDOM, RELEVANT, ALERT, "#6a3d9a", "#56b4e9", "#cc79a7", INK)  # which cross each other
_LINE_COLOURS = (STUDENT, RANDOM, RELEVANT, ALERT, *_OTHER_COLOURS)


def _sweep(axes: Axes, means: pd.DataFrame, label: str, teacher: float) -> None:
    """Draw a line for each line and objective: the colour is the line's, a dash the second objective's."""
    roles = means.groupby("line", sort=False)["role"].first()
    colours = dict(zip(roles.index, _LINE_COLOURS * len(roles), strict=False))
    if roles.is_unique:
        colours |= {line: _COLOURS[role] for line, role in roles.items() if role in _COLOURS}
    dashes = dict(zip(means["objective"].unique(), ("-", (0, (4, 2)), (0, (1, 2))) * len(means), strict=False))
    axes.axhline(max(100 - teacher, _LEAST_ERROR), color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="teacher")
    for number, (name, of_row) in enumerate(means.sort_values("at").groupby("row", sort=False)):
        line, objective = of_row[["line", "objective"]].iloc[0]
        error, deviation = _error(of_row)
        face = "white" if of_row["is_reference"].all() else colours[line]
        axes.errorbar(
            of_row["at"], error, yerr=deviation, marker=_MARKERS[number % len(_MARKERS)], markersize=5, linewidth=1.5,
            elinewidth=1, capsize=2, color=colours[line], markerfacecolor=face, linestyle=dashes[objective], label=name,
        )  # fmt: skip
    places = np.sort(means["at"].unique())
    if places[0] > 0 and places[-1] / places[0] >= 10:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,g}" for place in places])
    axes.set_xticks([], minor=True)
    _dress(axes, label, "test accuracy (%)")
    _accuracy_axis(axes, vertical=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _curve(axes: Axes, curves: pd.DataFrame, title: str) -> None:
    """Draw accuracy against updates, a line a row, with a band of one standard deviation."""
    for colour, (name, of_row) in zip(_CURVE_COLOURS * len(curves), curves.groupby("row", sort=False), strict=False):
        error = np.clip(100 - of_row["watched"], _LEAST_ERROR, None)
        deviation = of_row["std"].fillna(0.0)
        axes.plot(of_row["updates"], error, color=colour, linewidth=1.5, label=name)
        low = np.clip(error - deviation, 0.8 * _LEAST_ERROR, None)
        axes.fill_between(of_row["updates"], low, error + deviation, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    _dress(axes, "updates", "accuracy (%)")
    _accuracy_axis(axes, vertical=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _rows(axes: Axes, means: pd.DataFrame, teacher: float) -> None:
    looks = _looks(means)
    ordered = means.sort_values("mean", ascending=False).reset_index(drop=True)
    axes.axvline(max(100 - teacher, _LEAST_ERROR), color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    for place, name in enumerate(ordered["row"]):
        look = looks[name]
        error, deviation = _error(ordered[place : place + 1])
        face = "white" if look.is_reference else look.colour
        axes.errorbar(
            error, [place], xerr=deviation, fmt=look.marker, markersize=6, color=look.colour, markerfacecolor=face,
            elinewidth=1.2, capsize=2.5,
        )  # fmt: skip
    axes.set_yticks(range(len(ordered)), ordered["row"].tolist(), color=INK)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    _dress(axes, "test accuracy (%); dotted: teacher, hollow: reference", "", grid="x")
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
