"""What the HTML page of a comparison shows: verdict, charts and tables that sort."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline import __version__
from pu_kd_pipeline.comparison.charts import (
    Dots,
    Look,
    accuracy_dots,
    columns_chart,
    curves_chart,
    gap_dots,
    looks_of,
    sweep_chart,
)
from pu_kd_pipeline.comparison.differences import best_row, differences_to_best
from pu_kd_pipeline.comparison.formatting import EACH_ALONE, difference_text, signed
from pu_kd_pipeline.comparison.grid import Blocks, make_cells
from pu_kd_pipeline.comparison.present import (
    CellKey,
    PresentResults,
    are,
    cell_key,
    student_text,
    students_text,
)
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
from pu_kd_pipeline.comparison.verdict import (
    Lead,
    gap_sentences,
    lead_of,
    lead_sentences,
    place_text,
    points_text,
    rows_of_column,
    verdict_text,
    yardstick_sentence,
)
from pu_kd_pipeline.learning.proportions import clopper_pearson_interval
from pu_kd_pipeline.provenance.commits import commit_of_package
from pu_kd_pipeline.reporting.html import render_page, script_values
from pu_kd_pipeline.reporting.sections.classes import Cell, SortableTable
from pu_kd_pipeline.reporting.sections.origin import (
    ENVIRONMENT,
    Origin,
    note_on_audit,
    parameters_file,
    plain_blocks,
    run_option,
)
from pu_kd_pipeline.reporting.sections.quarantine import quarantine_of
from pu_kd_pipeline.reporting.style import UNKNOWN, percent

if TYPE_CHECKING:
    from pu_kd_pipeline.comparison.differences import RowDifference
    from pu_kd_pipeline.comparison.gap import Gap, GapRow
    from pu_kd_pipeline.images.store import ImageStore
    from pu_kd_pipeline.models.model import Model
    from pu_kd_pipeline.params.comparison import ComparisonParams
    from pu_kd_pipeline.reporting.sections.line_chart import LineChart

_MAX_ROWS_BY_CLASS = 8  # more columns cannot be compared by eye
_LIBRARIES = ("torch", "torchvision", "numpy")
_PAGE_ALONE = "comparison --nodes=comparison.write_comparison_page"
# Names of stores that are compared with the results.
POOL = "pool images"
TEST = "test images"
_OTHER_SEEDS = "# other seeds: change comparison.seeds in"


@dataclass(frozen=True)
class Part:
    """A section of one length of training: sentences, charts, and a table that sorts."""

    title: str
    anchor: str
    notes: list[str] = field(default_factory=list)
    dots: list[Dots] = field(default_factory=list)
    charts: list[LineChart] = field(default_factory=list)
    tables: list[SortableTable] = field(default_factory=list)
    is_folded: bool = False
    """Whether the tables are shown on a click."""


@dataclass(frozen=True)
class Length:
    """All sections of one length of training."""

    title: str
    """Empty where the comparison has one length."""
    anchor: str
    parts: list[Part]


def render_comparison(
    found: PresentResults,
    params: ComparisonParams,
    blocks: Blocks,
    gaps: Sequence[Gap],
    teacher: Model,
    stores: Mapping[str, ImageStore],
    parameters: Mapping[str, Any],
) -> str:
    """Return the page as HTML.

    Args:
        found: the results of the present grid, and which others there are.
        params: the comparison.
        blocks: the run's own parameter blocks, which the variants override.
        gaps: headroom and gap closed of these results, as `measure_gaps` returns them.
        teacher: the present one.
        stores: image stores by name, whose refused images are named; `POOL` and `TEST` are
            compared with the results.
        parameters: blocks of parameters by name, for the section on how to make it again.
    """
    results = found.results
    means = means_over_seeds(results)
    by_length = results_by_length(results, params)
    leads = _leads(by_length, params)
    looks = _looks(by_length, params)
    lengths = []
    # The longest first, which the verdict is about.
    for n_updates, of_length in reversed(by_length):
        page = _LengthPage(of_length, params, looks, list(teacher.card.classes), n_updates)
        title = f"After {n_updates:,} updates" if len(by_length) > 1 else ""
        here = [gap for gap in gaps if gap.n_updates == n_updates]
        lengths.append(Length(title, f"updates-{n_updates}", page.parts(here)))
    # A length without a result has nothing to show; its students are among the doubts.
    lengths = [length for length in lengths if length.parts] or lengths[:1]
    return render_page(
        "comparison.html.jinja",
        title=params.title,
        findings=_findings(leads, by_length, params, blocks, gaps),
        doubts=_doubts(found, teacher, stores),
        tiles=_tiles(results, leads, gaps),
        leads=_lead_table(leads) if len(leads) > 1 else None,
        facts=_facts(results, means, params),
        lengths=lengths,
        notes=_notes(results),
        failures=_failures(results),
        stores=[(name, f"{len(store):,}", _sources(store)) for name, store in stores.items()],
        refused=quarantine_of(stores),
        origin=_origin(results, params, teacher, parameters),
        fingerprints=_inputs(results),
        environment=ENVIRONMENT,
        **script_values(None),
    )


def _looks(
    by_length: Sequence[tuple[int | None, pd.DataFrame]], params: ComparisonParams
) -> dict[str, Look]:
    """Return the looks of all rows; a variant with other objectives has another name."""
    names: dict[str, None] = {}
    for _, results in by_length:
        of_grid, _ = split_sweeps(means_over_seeds(results), params)
        names |= dict.fromkeys(of_grid["row"])
    return looks_of(list(names))


# --- the verdict ---


def _leads(
    by_length: Sequence[tuple[int | None, pd.DataFrame]], params: ComparisonParams
) -> list[Lead]:
    """Return the leader of each length and number of labeled images; the last one is the page's."""
    leads = []
    for n_updates, results in by_length:
        of_grid, _ = split_sweeps(means_over_seeds(results), params)
        columns: list[float | None] = list(labeled_columns(of_grid)) or [None]
        for column in columns:
            lead = lead_of(results, of_grid, n_updates, column)
            if lead is not None:
                leads.append(lead)
    return leads


def _findings(
    leads: Sequence[Lead],
    by_length: Sequence[tuple[int | None, pd.DataFrame]],
    params: ComparisonParams,
    blocks: Blocks,
    gaps: Sequence[Gap],
) -> list[str]:
    """Return the verdict on the longest training and most labeled images, and what supports it."""
    if not leads:
        return ["Nothing leads here: there are no results of variants that are no references."]
    lead = leads[-1]
    results = dict(by_length)[lead.n_updates]
    of_grid, _ = split_sweeps(means_over_seeds(results), params)
    wanted = _places(params, blocks)
    led = {(each.n_updates, each.column) for each in leads}
    has_lengths = len({n_updates for n_updates, _ in [*wanted, *led]}) > 1
    has_columns = len({column for _, column in [*wanted, *led]} - {None}) > 1
    where = place_text(
        lead.n_updates, lead.column, has_lengths=has_lengths, has_columns=has_columns
    )
    verdict, *limits = lead_sentences(lead, where, int(results["n_test"].max()))
    sentences = [verdict]
    last = wanted[-1]
    # Rows without labeled images are in the race with any number of them.
    if not led & {last, (last[0], None)}:
        place = place_text(*last, has_lengths=has_lengths, has_columns=has_columns)
        sentences.append(f"No variant that is no reference has a result {place}.")
    sentences += gap_sentences(gaps, of_grid, lead)
    by_yardstick = yardstick_sentence(results, of_grid, lead)
    if by_yardstick is not None:
        sentences.append(by_yardstick)
    return sentences + limits


def _places(params: ComparisonParams, blocks: Blocks) -> list[tuple[int | None, float | None]]:
    """Return the lengths and numbers of labeled images of the grid, the page's own as the last."""
    columns = set()
    for cell in make_cells(params, blocks):
        variant = params.variants[cell.variant]
        assert variant is not None
        if not cell.is_reference and not variant.sweep and cell.labeled_per_class is not None:
            columns.add(float(cell.labeled_per_class))
    lengths: list[int | None] = [*sorted(params.n_updates)] if params.n_updates else [None]
    in_order: list[float | None] = [*sorted(columns)] if columns else [None]
    return [(n_updates, column) for n_updates in lengths for column in in_order]


def _lead_table(leads: Sequence[Lead]) -> SortableTable:
    header = [
        "updates",
        "labeled per class",
        "leads",
        "accuracy",
        "the next",
        "lead over it",
        "verdict",
    ]
    rows = []
    # The one of the first sentence is the last.
    for lead in reversed(leads):
        second = lead.second or UNKNOWN
        over = None if lead.to_second is None else _reversed(lead.to_second)
        rows.append(
            [
                _number(lead.n_updates, ","),
                _number(lead.column, ",.0f"),
                Cell(lead.name, lead.name),
                Cell(f"{lead.percent:.2f} %", lead.percent),
                Cell(second, second),
                _difference_cell(over),
                Cell(verdict_text(lead), verdict_text(lead)),
            ]
        )
    return SortableTable(header, rows)


def _reversed(found: RowDifference) -> RowDifference:
    """Return the second row minus the first in place of the first minus the second."""
    accuracy = found.accuracy
    turned = accuracy._replace(
        difference=-accuracy.difference, lower=-accuracy.upper, upper=-accuracy.lower
    )
    return found._replace(accuracy=turned)


def _tiles(
    results: pd.DataFrame, leads: Sequence[Lead], gaps: Sequence[Gap]
) -> list[dict[str, str]]:
    tiles = []
    if leads:
        lead = leads[-1]
        value = f"{lead.percent:.2f} %"
        tiles.append({"name": f"leads: {lead.name}", "value": value, "role": "student"})
        if lead.to_second is not None:
            found = lead.to_second.accuracy
            tiles.append(
                {
                    "name": f"lead over {lead.second}",
                    "value": f"{signed(-100 * found.difference)} points",
                    "role": "random",
                    "detail": f"95 %: {signed(-100 * found.upper)} to {signed(-100 * found.lower)}",
                }
            )
    teacher = results["teacher_accuracy"].max()
    if np.isfinite(teacher):
        value = f"{100 * teacher:.2f} %"
        tiles.append({"name": "teacher accuracy", "value": value, "role": "teacher"})
    n_students = f"{int(results['accuracy'].notna().sum()):,}"
    tiles.append({"name": "students", "value": n_students, "role": "teacher"})
    return tiles


# --- what to doubt ---


def _doubts(found: PresentResults, teacher: Model, stores: Mapping[str, ImageStore]) -> list[str]:
    """Return which cells are missing, failed, or not of the present grid, teacher and images."""
    results = found.results
    doubts = found.doubts()
    failed = set(map(cell_key, results[results["failure"].notna()].to_dict("records")))
    if failed:
        doubts.append(f"{students_text(failed)} could not be computed; the reasons are below.")
    if results["yardstick"].nunique() > 1:
        doubts.append(
            "The students were measured on different yardsticks: their numbers there cannot be "
            "compared."
        )
    if results["test_images"].nunique() > 1:
        doubts.append(
            "The students were tested on different test images: only those of the same images are "
            "compared."
        )
    doubts += [
        f"{students_text(keys)} {are(keys)} of {what}: run `kedro run --pipeline=comparison` again."
        for what, keys in _stale(results, teacher, stores).items()
        if keys
    ]
    return doubts


def _stale(
    results: pd.DataFrame, teacher: Model, stores: Mapping[str, ImageStore]
) -> dict[str, set[CellKey]]:
    """Return which cells are of other inputs than the present ones, by the name of the input.

    What results of an earlier version do not state is not compared.
    """
    present = {
        "teacher": ("another teacher than the present one", teacher.fingerprint()),
        "test_images": ("other test images than the present ones", stores[TEST].fingerprint),
        "n_pool": ("a pool of another size than the present one", len(stores[POOL])),
    }
    stale = {}
    for column, (what, value) in present.items():
        is_other = results[column].notna() & (results[column] != value)
        stale[what] = set(map(cell_key, results[is_other].to_dict("records")))
    return stale


def _notes(results: pd.DataFrame) -> list[tuple[str, str]]:
    """Return variant and objective, and the note of the first seed that has one."""
    found = []
    for (variant, objective), of_row in results.groupby(["variant", "objective"], sort=False):
        notes = of_row["note"].dropna()
        if len(notes):
            name = f"{variant}, {objective} ({len(notes)} of {len(of_row)} students)"
            found.append((name, str(notes.iloc[0])))
    return found


def _failures(results: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the students that could not be computed by the reason, which is the second text."""
    by_reason: dict[str, list[str]] = {}
    for row in results[results["failure"].notna()].to_dict("records"):
        by_reason.setdefault(str(row["failure"]), []).append(student_text(cell_key(row)))
    return [("; ".join(students), reason) for reason, students in by_reason.items()]


def _facts(results: pd.DataFrame, means: pd.DataFrame, params: ComparisonParams) -> str:
    text = (
        f"Every student got {updates_text(results, params)}; {seeds_text(means)}. Accuracies are "
        "those on the test images."
    )
    if means["is_reference"].any():
        text += " References, in italics, use the original images or the pool's truth."
    return text


# --- one length of training ---


class _LengthPage:
    """Makes the sections of one length of training."""

    def __init__(
        self,
        results: pd.DataFrame,
        params: ComparisonParams,
        looks: dict[str, Look],
        classes: Sequence[str],
        n_updates: int | None,
    ) -> None:
        self._results = results
        self._params = params
        self._looks = looks
        self._classes = classes
        # A part of ids, which a page has once each.
        self._suffix = "" if n_updates is None else f"-{n_updates}"
        self._means = means_over_seeds(results)
        self._finished = self._means[self._means["n_seeds"] > 0]
        self._of_grid, self._sweeps = split_sweeps(self._finished, params)
        self._columns = labeled_columns(self._of_grid)
        self._teacher_percent = 100 * float(results["teacher_accuracy"].max())

    def parts(self, gaps: Sequence[Gap]) -> list[Part]:
        parts: list[Part] = []
        if len(self._of_grid):
            parts += [self._accuracy(), *self._certainty()]
        parts += self._gaps(gaps)
        parts += self._yardstick()
        for number, (label, points) in enumerate(self._sweeps.items()):
            parts.append(self._sweep(number, label, points))
        parts += self._curves()
        parts += self._by_class()
        parts += self._selections()
        return parts

    def _anchor(self, name: str) -> str:
        return name + self._suffix

    def _column_header(self, column: float) -> str:
        return f"{column:.0f} per class"

    def _last_column(self) -> float | None:
        return self._columns[-1] if self._columns else None

    def _leader(self) -> str:
        best = best_row(self._results, self._of_grid, self._last_column())
        return "" if best is None else str(best["row"])

    def _accuracy(self) -> Part:
        column = self._last_column()
        best_first = rows_of_column(self._of_grid, column)
        title = "test accuracy"
        if len(self._columns) > 1:
            title += f", {column:.0f} labeled images of each class"
        dots = accuracy_dots(title, best_first, self._leader(), self._teacher_percent)
        charts = []
        tables = []
        if len(self._columns) > 1:
            chart = columns_chart(
                "test accuracy (%)",
                self._of_grid,
                self._columns,
                self._looks,
                self._teacher_percent,
            )
            charts = [chart] if chart is not None else []
            tables = [self._accuracy_table(best_first)]
        return Part(
            "Accuracy",
            self._anchor("accuracy"),
            dots=[dots] if dots is not None else [],
            charts=charts,
            tables=tables,
        )

    def _accuracy_table(self, best_first: pd.DataFrame) -> SortableTable:
        header = ["variant", *map(self._column_header, self._columns)]
        n_seeds = int(self._means["n_seeds"].max())
        best = {}
        for column in self._columns:
            found = best_row(self._results, self._of_grid, column)
            best[column] = None if found is None else found["row"]
        rows = []
        names = dict.fromkeys([*best_first["row"], *self._of_grid["row"]])
        for name in names:
            of_row = self._of_grid[self._of_grid["row"] == name]
            cells = [_name_cell(name, bool(of_row["is_reference"].iloc[0]))]
            for column in self._columns:
                here = of_row[is_in_column(of_row, column)]
                kind = "best" if best[column] == name else ""
                cells.append(_accuracy_cell(here, n_seeds, kind))
            rows.append(cells)
        return SortableTable(header, rows)

    def _certainty(self) -> list[Part]:
        columns: list[float | None] = list(self._columns) or [None]
        by_column = {
            column: differences_to_best(self._results, self._of_grid, column) for column in columns
        }
        found = [value for differences in by_column.values() for value in differences.values()]
        if not found:
            return []
        title = "How certain the order is"
        anchor = self._anchor("certainty")
        if all(value is None for value in found):
            note = (
                "Whether chance explains a difference is not known: the students have no common "
                "seed and test images, or an earlier version wrote their results."
            )
            return [Part(title, anchor, [note])]
        header = ["variant"]
        header += ["" if each is None else self._column_header(each) for each in columns]
        rows = []
        best_of = {column: best_row(self._results, self._of_grid, column) for column in columns}
        for name in rows_of_column(self._of_grid, self._last_column())["row"].unique():
            cells = [Cell(str(name), str(name))]
            for column in columns:
                best = best_of[column]
                if best is not None and best["row"] == name:
                    cells.append(Cell("leads", 0.0, kind="best"))
                    continue
                cells.append(_difference_cell(by_column[column].get(name)))
            rows.append(cells)
        notes = [
            "Points of accuracy to the row that leads the column with 95 % intervals, from pairs "
            "of students of one seed on the same test images. Bold: chance does not explain the "
            "difference, neither that of the test images nor that of the seeds. "
            f"{EACH_ALONE}"
        ]
        if any(value is not None and value.n_seeds == 1 for value in found):
            notes.append(
                "Where one seed was compared, the test covers the chance of the test images alone."
            )
        return [Part(title, anchor, notes, tables=[SortableTable(header, rows)])]

    def _gaps(self, gaps: Sequence[Gap]) -> list[Part]:
        if not gaps:
            return []
        goal = gaps[0].goal
        notes = [
            f"Headroom is what choosing images can gain: the accuracy of “{goal}”, which uses what "
            "a user does not have, minus that of as many random images. The gap closed is the "
            "share of it that a row gains, compared with the control that has the nearest number "
            "of images."
        ]
        if not all(gap.shares_labeled for gap in gaps):
            notes.append(
                "distillation.labeled_share is null, so that the batches of students with more "
                "pool images have fewer labeled ones: differences to the whole pool, and to "
                "controls of another size, are also differences of that share."
            )
        references = set(self._of_grid.loc[self._of_grid["is_reference"], "row"])
        dots = []
        tables = []
        for gap in gaps:
            where = ""
            if len(gaps) > 1:
                where = f"{gap.labeled_per_class:.0f} labeled images of each class: "
            for headroom in gap.headrooms:
                notes.append(
                    f"{where}headroom over “{headroom.control}”, {headroom.n_images:,.0f} images, "
                    f"{points_text(headroom.difference)}."
                )
            if gap.reasons:
                notes.append(
                    f"{where}not compared, because a difference would not be that of the images: "
                    f"{'; '.join(gap.reasons)}."
                )
            found = gap_dots(f"{where}gap closed", gap, self._leader(), references)
            dots += [found] if found is not None else []
            tables += [_gap_table(gap, where.removesuffix(": "))] if gap.rows else []
        anchor = self._anchor("gap")
        return [Part("Headroom and gap closed", anchor, notes, dots=dots, tables=tables)]

    def _yardstick(self) -> list[Part]:
        measured = self._means[self._means["yardstick_agreement"].notna()]
        if not len(measured):
            return []
        n_images = int(self._results["n_yardstick"].max())
        note = (
            f"Agreement with the teacher on {n_images:,} images that no student learned from, with "
            "95 % intervals, and the KL divergence from it after temperature scaling; means over "
            "the seeds. Choose by these: the test images are for the end."
        )
        rows = []
        for _, row in measured.sort_values("yardstick_kl", kind="stable").iterrows():
            agreement = row["yardstick_agreement"]
            # The seeds share the images: their mean is no surer of them than one seed is.
            interval = clopper_pearson_interval(round(agreement * n_images), n_images)
            bounds = f"{100 * interval.lower:.1f} to {100 * interval.upper:.1f}"
            rows.append(
                [
                    _name_cell(row["row"], bool(row["is_reference"])),
                    _number(row["labeled_per_class"], ".0f"),
                    Cell(f"{percent(agreement)} ({bounds})", float(agreement)),
                    _number(row["yardstick_kl"], ".3f"),
                ]
            )
        header = ["variant", "labeled per class", "agreement", "KL (nats)"]
        table = SortableTable(header, rows)
        return [Part("On the yardstick", self._anchor("yardstick"), [note], tables=[table])]

    def _sweep(self, number: int, label: str, points: pd.DataFrame) -> Part:
        chart = sweep_chart("test accuracy (%)", label, points, self._teacher_percent)
        places = sorted(points["at"].unique())
        rows = []
        for name, of_row in points.groupby("row", sort=False):
            cells = [_name_cell(str(name), bool(of_row["is_reference"].all()))]
            for place in places:
                here = of_row[of_row["at"] == place]
                cells.append(_accuracy_cell(here, int(points["n_seeds"].max()), ""))
            rows.append(cells)
        table = SortableTable(["variant", *(f"{place:,g}" for place in places)], rows)
        charts = [chart] if chart is not None else []
        return Part(f"By {label}", self._anchor(f"sweep-{number}"), charts=charts, tables=[table])

    def _curves(self) -> list[Part]:
        charts = []
        tables = []
        for title, curves in curve_table(self._results, self._params).items():
            chart = curves_chart(f"{title}: accuracy (%)", curves, self._looks)
            if chart is not None:
                charts.append(chart)
            tables.append(_curve_table(curves))
        if not charts:
            return []
        note = "Accuracy on training images of the teacher that no student sees, over the updates."
        anchor = self._anchor("curves")
        return [Part("Curves", anchor, [note], charts=charts, tables=tables, is_folded=True)]

    def _by_class(self) -> list[Part]:
        """Return the accuracy by class of the best rows, a mean over the seeds."""
        column = self._last_column()
        best_first = rows_of_column(self._of_grid, column)
        by_row = {}
        for _, row in best_first.iterrows():
            is_of_row = self._results["variant"] == row["variant"]
            is_of_row &= self._results["objective"] == row["objective"]
            labeled = self._results["labeled_per_class"]
            is_of_row &= labeled.isna() | (labeled == column)
            lists = self._results.loc[is_of_row, "per_class_accuracy"].dropna()
            known = [values for values in lists if len(values) == len(self._classes)]
            if known:
                stacked = np.array(known, dtype=np.float64)
                # Of the same test images, so that a class lacks images in all seeds or in none.
                by_row[str(row["row"])] = stacked.mean(axis=0)
            if len(by_row) == _MAX_ROWS_BY_CLASS:
                break
        if not by_row:
            return []
        rows = []
        for index, name in enumerate(self._classes):
            cells = [Cell(str(name), str(name))]
            for values in by_row.values():
                value = values[index]
                is_known = bool(np.isfinite(value))
                cells.append(Cell(percent(value), float(value) if is_known else None))
            rows.append(cells)
        note = "Means over the seeds; the best row is the first column."
        if len(by_row) < len(best_first):
            note += f" The first {len(by_row)} of {len(best_first)} rows are shown."
        if len(self._columns) > 1 and column is not None:
            note += f" With {column:.0f} labeled images of each class."
        table = SortableTable(["class", *by_row], rows)
        return [Part("Accuracy by class", self._anchor("by-class"), [note], tables=[table])]

    def _selections(self) -> list[Part]:
        selected = self._finished[self._finished["n_selected"] > 0]
        if not len(selected):
            return []
        header = [
            "variant",
            "labeled per class",
            "images",
            "AUC",
            "precision",
            "recall",
            "class prior",
            "PU (s)",
            "student (s)",
        ]
        rows = []
        for _, row in selected.iterrows():
            rows.append(
                [
                    _name_cell(row["row"], bool(row["is_reference"])),
                    _number(row["labeled_per_class"], ".0f"),
                    _number(row["n_selected"], ",.0f"),
                    _number(row["auc"], ".3f"),
                    _percent_cell(row["precision"]),
                    _percent_cell(row["recall"]),
                    _number(row["class_prior"], ".3f"),
                    _number(row["pu_seconds"], ".0f"),
                    _number(row["seconds"], ".0f"),
                ]
            )
        note = (
            "Means over the seeds. Cells keep numbers and no lists of images: the report of "
            "the pipeline full, with the rule of a variant, shows its images."
        )
        table = SortableTable(header, rows)
        return [Part("What was selected", self._anchor("selected"), [note], tables=[table])]


def _gap_table(gap: Gap, title: str) -> SortableTable:
    header = ["variant", "images", "control", "− control"]
    if gap.whole_pool is not None:
        header.append(f"− {gap.whole_pool}")
    header.append("gap closed")
    rows = []
    for row in gap.rows:
        control = row.control or UNKNOWN
        cells = [
            Cell(row.name, row.name),
            _number(row.n_images, ",.0f"),
            Cell(control, control),
            _difference_cell(row.to_control),
        ]
        if gap.whole_pool is not None:
            cells.append(_difference_cell(row.to_whole_pool))
        cells.append(_closed_cell(row))
        rows.append(cells)
    return SortableTable(header, rows, title)


def _closed_cell(row: GapRow) -> Cell:
    if row.closed is None:
        return Cell(UNKNOWN, None)
    shares = (row.closed.share, row.closed.lower, row.closed.upper)
    share, lower, upper = (f"{round(100 * value):,}".replace("-", "−") for value in shares)
    return Cell(f"{share} % ({lower} to {upper})", row.closed.share)


def _curve_table(curves: pd.DataFrame) -> SortableTable:
    updates = sorted(curves["updates"].unique())
    rows = []
    for name, of_row in curves.groupby("row", sort=False):
        known = of_row.set_index("updates")["watched"]
        cells = [Cell(str(name), str(name))]
        cells += [_number(known.get(update), ".2f") for update in updates]
        rows.append(cells)
    return SortableTable(["variant", *(f"{update:,}" for update in updates)], rows)


# --- cells of tables ---


def _name_cell(name: str, is_reference: bool) -> Cell:
    return Cell(name, name, kind="reference" if is_reference else "")


def _accuracy_cell(rows: pd.DataFrame, n_seeds: int, kind: str) -> Cell:
    """Return the accuracy of the one row that is given, or a dash without any."""
    if not len(rows) or not rows["n_seeds"].iloc[0]:
        return Cell(UNKNOWN, None)
    row = rows.iloc[0]
    text = f"{row['mean']:.2f}"
    # A single seed has no deviation.
    if np.isfinite(row["std"]):
        text += f" ± {row['std']:.2f}"
    if row["n_seeds"] < n_seeds:
        text += f" ({row['n_seeds']:.0f})"
    return Cell(text, float(row["mean"]), kind=kind)


def _difference_cell(found: RowDifference | None) -> Cell:
    if found is None:
        return Cell(UNKNOWN, None)
    kind = "significant" if found.accuracy.is_significant else ""
    return Cell(_plain(difference_text(found)), found.accuracy.difference, kind=kind)


def _plain(text: str) -> str:
    """Return a text without the bold marks of Markdown."""
    return text.replace("**", "")


def _number(value: float | None, form: str) -> Cell:
    if value is None or not np.isfinite(value):
        return Cell(UNKNOWN, None)
    return Cell(format(value, form), float(value))


def _percent_cell(value: float | None) -> Cell:
    if value is None or not np.isfinite(value):
        return Cell(UNKNOWN, None)
    return Cell(percent(value), float(value))


# --- where it comes from ---


def _sources(store: ImageStore) -> str:
    counts = store.index["source"].value_counts(sort=False)
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _origin(
    results: pd.DataFrame,
    params: ComparisonParams,
    teacher: Model,
    parameters: Mapping[str, Any],
) -> Origin:
    teachers = results["teacher"].dropna().unique()
    networks = [("teacher", str(value)) for value in teachers]
    if results["teacher"].isna().any():
        networks.append(("teacher of the results", "not recorded by an earlier version"))
        networks.append(("present teacher", teacher.fingerprint()))
    versions = [("pu_kd_pipeline", __version__), ("Python", platform.python_version())]
    versions += [(name, version(name)) for name in _LIBRARIES]
    blocks = plain_blocks(parameters)
    text, has_masked = parameters_file(blocks)
    note = note_on_audit(blocks)
    return Origin(
        networks=networks,
        versions=[(f"{name}, of this page", number) for name, number in versions],
        commit=commit_of_package(),
        seed=", ".join(map(str, params.seeds)),
        parameters=text,
        has_masked=has_masked,
        command=run_option("comparison"),
        page_pipeline=_PAGE_ALONE,
        notes=[] if note is None else [note],
        code_title="code of this page",
        seed_title="seeds",
        other_seed=_OTHER_SEEDS,
        compared=(
            "The grid of students, and method, rule, criterion and features of each, are compared "
            "with those that the results hold."
        ),
    )


def _inputs(results: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the fingerprints of the images that the students were measured on."""
    found = []
    for column, name in (("test_images", "test images"), ("yardstick", "yardstick")):
        found += [(name, str(value)) for value in results[column].dropna().unique()]
    return found
