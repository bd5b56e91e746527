"""The results of a comparison as a page of Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.differences import best_row, differences_to_best
from pu_kd_pipeline.comparison.formatting import EACH_ALONE, difference_text, markdown_table
from pu_kd_pipeline.comparison.gap_section import gap_section
from pu_kd_pipeline.comparison.tables import (
    curve_table,
    is_in_column,
    labeled_columns,
    means_over_seeds,
    results_by_length,
    seeds_text,
    split_sweeps,
    updates_text,
)
from pu_kd_pipeline.learning.proportions import clopper_pearson_interval
from pu_kd_pipeline.reporting.markdown import markdown_text
from pu_kd_pipeline.reporting.style import UNKNOWN, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pu_kd_pipeline.comparison.gap import Gap
    from pu_kd_pipeline.params.comparison import ComparisonParams

_CURVES_FACTS = (
    "In percent, of training images of the teacher that no student sees; columns: updates so far."
)
_CERTAINTY_FACTS = (
    "Points of accuracy to the row that leads the column, and the 95 % interval, from pairs of "
    "students of one seed on the same test images. **Bold**: chance does not explain the "
    "difference, neither that of the test images nor that of the seeds. "
    f"{EACH_ALONE}"
)
_ONE_SEED_FACTS = (
    "Where one seed was compared, the test covers the chance of the test images alone: other seeds "
    "may turn the order around."
)
_NOT_TESTED = (
    "Whether chance explains a difference is not known: an earlier version wrote these results, "
    "without its students' answers to single test images. Compute them again to have it tested."
)
_SELECTION_HEADER = [
    "",
    "labeled per class",
    "images",
    "AUC",
    "precision",
    "recall",
    "class prior",
    "PU (s)",
    "student (s)",
]


def comparison_page(
    results: pd.DataFrame,
    params: ComparisonParams,
    gaps: Sequence[Gap] = (),
    doubts: Sequence[str] = (),
) -> str:
    """Return the page: accuracies, gaps, sweeps, curves, selections, notes and failures.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        params: the comparison's title, variants, lengths, sweeps and panels.
        gaps: headroom and gap closed, as `measure_gaps` returns them.
        doubts: sentences on results that are missing or left out.
    """
    means = means_over_seeds(results)
    parts = [f"# {markdown_text(params.title)}"]
    if doubts:
        parts.append("\n".join(f"- {markdown_text(doubt)}" for doubt in doubts))
    parts.append(_facts(results, means, params))
    by_length = results_by_length(results, params)
    for n_updates, of_length in by_length:
        gaps_here = [gap for gap in gaps if gap.n_updates == n_updates]
        sections = _sections(of_length, params, gaps_here)
        if len(by_length) > 1:
            parts.append(f"## After {n_updates:,} updates")
            sections = [_one_level_down(part) for part in sections]
        parts += sections
    notes = _notes(results)
    if notes:
        parts.append("## Notes")
        parts.append("\n".join(notes))
    failures = _failures(results, has_lengths=len(by_length) > 1)
    if failures:
        parts.append("## What could not be computed")
        parts.append("\n".join(failures))
        parts.append("To try a cell again, delete its file in `comparison_cells`.")
    return "\n\n".join(parts) + "\n"


def _sections(results: pd.DataFrame, params: ComparisonParams, gaps: Sequence[Gap]) -> list[str]:
    """Return the tables of one length of training."""
    means = means_over_seeds(results)
    of_grid, sweeps = split_sweeps(means, params)
    parts = []
    if len(of_grid):
        accuracies = _accuracy_rows(results, of_grid)
        parts.append(markdown_table(accuracies))
        parts += _certainty(results, of_grid)
    parts += gap_section(gaps)
    parts += _yardstick(results, means)
    for label, of_sweep in sweeps.items():
        parts.append(f"## By {markdown_text(label)}")
        points = _sweep_rows(of_sweep)
        parts.append(markdown_table(points))
    curves_by_title = curve_table(results, params)
    for title, curves in curves_by_title.items():
        parts.append(f"## Accuracy by updates: {markdown_text(title)}")
        parts.append(_CURVES_FACTS)
        updates = _curve_rows(curves)
        parts.append(markdown_table(updates))
    # Methods that train on the labeled images alone select nothing.
    has_selected = means["n_selected"] > 0
    if has_selected.any():
        parts.append("## What was selected")
        selections = _selection_rows(means[has_selected])
        parts.append(markdown_table(selections))
    return parts


def _one_level_down(part: str) -> str:
    """Return a part of the page with its heading below that of a length; others unchanged."""
    return f"#{part}" if part.startswith("##") else part


def _facts(results: pd.DataFrame, means: pd.DataFrame, params: ComparisonParams) -> str:
    seeds = seeds_text(means)
    n_updates = updates_text(results, params)
    facts = [
        f"Test accuracy in percent, mean ± standard deviation over {seeds}; "
        "columns: labeled images per class.",
        f"Every student got {n_updates}.",
    ]
    # Where every cell failed, no accuracy of the teacher is known.
    teacher_accuracies = results["teacher_accuracy"]
    if teacher_accuracies.notna().any():
        teacher_percent = 100 * teacher_accuracies.max()
        n_test = int(results["n_test"].max())
        facts.append(f"Teacher: {teacher_percent:.2f}; {n_test:,} test images.")
    facts.append("**Bold**: the row that leads a column.")
    if means["is_reference"].any():
        facts.append("*Italic*: a reference, which uses the original images or the pool's truth.")
    return " ".join(facts)


def _accuracy_rows(results: pd.DataFrame, means: pd.DataFrame) -> list[list[str]]:
    columns = labeled_columns(means)
    n_seeds = means["n_seeds"].max()
    best = {column: best_row(results, means, column) for column in columns}
    header = [f"{column:.0f}" for column in columns]
    rows = [["", *header]]
    for name, of_row in means.groupby("row", sort=False):
        is_reference = bool(of_row["is_reference"].iloc[0])
        title = _row_title(str(name), is_reference)
        cells = [title]
        for column in columns:
            is_here = is_in_column(of_row, column)
            here = of_row[is_here]
            text = _accuracy_text(here, n_seeds)
            leader = best[column]
            if leader is not None and leader["row"] == name:
                text = f"**{text}**"
            cells.append(text)
        rows.append(cells)
    return rows


def _certainty(results: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """Return the section on how certain the order of the rows is; empty for a single row."""
    columns = labeled_columns(means)
    by_column = {}
    for column in columns:
        by_column[column] = differences_to_best(results, means, column)
    all_differences = [value for column in by_column.values() for value in column.values()]
    if not all_differences:
        return []
    title = "## How certain the order is"
    if all(value is None for value in all_differences):
        return [title, _NOT_TESTED]
    rows = [["", *(f"{column:.0f}" for column in columns)]]
    best_of = {column: best_row(results, means, column) for column in columns}
    for name in means["row"].unique():
        cells = [markdown_text(str(name))]
        for column in columns:
            best = best_of[column]
            is_best = best is not None and best["row"] == name
            text = "leads" if is_best else difference_text(by_column[column].get(name))
            cells.append(text)
        rows.append(cells)
    facts = _CERTAINTY_FACTS
    if any(value is not None and value.n_seeds == 1 for value in all_differences):
        facts += f" {_ONE_SEED_FACTS}"
    return [title, facts, markdown_table(rows)]


def _yardstick(results: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """Return the section on the yardstick; empty where no student was measured on it."""
    is_measured = means["yardstick_agreement"].notna()
    if not is_measured.any():
        return []
    n_images = int(results["n_yardstick"].max())
    facts = (
        f"Agreement with the teacher on {n_images:,} images that no student learned from, with the "
        "95 % interval, and the KL divergence from it after temperature scaling; means over the "
        "seeds. Choose by these: the test images are for the end."
    )
    # Results that were put together from several comparisons.
    if results["yardstick"].nunique() > 1:
        facts = (
            "These students were measured on different yardsticks: their numbers here cannot be "
            f"compared. {facts}"
        )
    rows = [["", "labeled per class", "agreement", "KL (nats)"]]
    for _, row in means[is_measured].iterrows():
        agreement = row["yardstick_agreement"]
        # The seeds share the images: their mean is no surer of them than one seed is.
        interval = clopper_pearson_interval(round(agreement * n_images), n_images)
        bounds = f"{100 * interval.lower:.1f} to {100 * interval.upper:.1f}"
        rows.append(
            [
                markdown_text(row["row"]),
                _fixed(row["labeled_per_class"], 0),
                f"{percent(agreement)} ({bounds})",
                _fixed(row["yardstick_kl"], 3),
            ]
        )
    return ["## On the yardstick", facts, markdown_table(rows)]


def _sweep_rows(means: pd.DataFrame) -> list[list[str]]:
    places = sorted(means["at"].unique())
    n_seeds = means["n_seeds"].max()
    header = [f"{place:,g}" for place in places]
    rows = [["", *header]]
    for name, of_row in means.groupby("row", sort=False):
        is_reference = bool(of_row["is_reference"].all())
        title = _row_title(str(name), is_reference)
        cells = [title]
        for place in places:
            is_here = of_row["at"] == place
            text = _accuracy_text(of_row[is_here], n_seeds)
            cells.append(text)
        rows.append(cells)
    return rows


def _curve_rows(curves: pd.DataFrame) -> list[list[str]]:
    updates = sorted(curves["updates"].unique())
    header = [f"{update:,}" for update in updates]
    rows = [["", *header]]
    for name, of_row in curves.groupby("row", sort=False):
        by_updates = of_row.set_index("updates")
        known = by_updates["watched"]
        cells = [markdown_text(str(name))]
        for update in updates:
            # Rows may have been recorded after different numbers of updates.
            accuracy_percent = known.get(update, np.nan)
            cells.append(_fixed(accuracy_percent, 2))
        rows.append(cells)
    return rows


def _selection_rows(means: pd.DataFrame) -> list[list[str]]:
    rows = [_SELECTION_HEADER]
    for _, row in means.iterrows():
        rows.append(
            [
                markdown_text(row["row"]),
                _fixed(row["labeled_per_class"], 0),
                f"{row['n_selected']:,.0f}",
                _fixed(row["auc"], 3),
                percent(row["precision"]),
                percent(row["recall"]),
                _fixed(row["class_prior"], 3),
                _fixed(row["pu_seconds"], 0),
                _fixed(row["seconds"], 0),
            ]
        )
    return rows


def _row_title(name: str, is_reference: bool) -> str:
    title = markdown_text(name)
    if is_reference:
        return f"*{title}*"
    return title


def _accuracy_text(rows: pd.DataFrame, n_seeds: int) -> str:
    """Return the accuracy of a cell of a table, with its deviation over the seeds.

    Args:
        rows: the one row of the cell, or none where it was not computed.
        n_seeds: the seeds of the comparison; a cell with fewer shows how many.
    """
    if not len(rows):
        return UNKNOWN
    row = rows.iloc[0]
    n_finished = row["n_seeds"]
    # No seed of the cell has a result.
    if not n_finished:
        return UNKNOWN
    mean = row["mean"]
    deviation = row["std"]
    text = f"{mean:.2f}"
    # A single seed has no deviation.
    if np.isfinite(deviation):
        text += f" ± {deviation:.2f}"
    if n_finished < n_seeds:
        text += f" ({n_finished:.0f})"
    return text


def _fixed(value: float, n_decimals: int) -> str:
    if np.isnan(value):
        return UNKNOWN
    return f"{value:.{n_decimals}f}"


def _notes(results: pd.DataFrame) -> list[str]:
    """Return a line per variant and objective with notes: the note of its first such seed."""
    lines = []
    groups = results.groupby(["variant", "objective"], sort=False)
    for (variant, objective), of_row in groups:
        notes = of_row["note"].dropna()
        if len(notes):
            n_noted = len(notes)
            n_students = len(of_row)
            students = f"{n_noted} of {n_students} students"
            first_note = markdown_text(notes.iloc[0])
            lines.append(f"- {markdown_text(str(variant))}, {objective} ({students}): {first_note}")
    return lines


def _failures(results: pd.DataFrame, has_lengths: bool) -> list[str]:
    """Return a line per cell that has no result, with the reason.

    Args:
        results: one row per cell.
        has_lengths: whether cells differ in their number of updates.
    """
    lines = []
    has_failed = results["failure"].notna()
    failed_cells = results[has_failed]
    for _, row in failed_cells.iterrows():
        variant = markdown_text(row["variant"])
        objective = row["objective"]
        seed = row["seed"]
        reason = markdown_text(row["failure"])
        n_per_class = row["labeled_per_class"]
        labeled = ""
        if not pd.isna(n_per_class):
            labeled = f", {n_per_class:.0f} per class"
        updates = f", {row['n_updates']:,.0f} updates" if has_lengths else ""
        lines.append(f"- {variant}, {objective}{labeled}{updates}, seed {seed}: {reason}")
    return lines
