"""The cells of a comparison: their names, their order, and the checks before the first of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pu_kd_pipeline import progress
from pu_kd_pipeline.comparison.computation import RESULT, CellComputation
from pu_kd_pipeline.comparison.grid import Blocks, Cell, make_cells
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.starts import STARTS
from pu_kd_pipeline.devices import arithmetic, prepare_device
from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import load_model
from pu_kd_pipeline.params.comparison import METHODS, ComparisonParams
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.provenance.factories import factory_digest
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint


@dataclass(frozen=True)
class PlacedCell:
    """A cell of a comparison.

    Attributes:
        cell: the cell.
        title: its name in logs, which no other cell of the comparison has.
        position: such as "cell 2 of 9".
    """

    cell: Cell
    title: str
    position: str


@dataclass(frozen=True)
class CellWork:
    """Computes cells; one that is never asked for was found finished.

    Attributes:
        computation: what the cells that are computed in a process share.
        computes: devices and number formats of the networks that are trained.
        architectures: of the students.
    """

    computation: CellComputation
    computes: tuple[ComputeParams, ...]
    architectures: tuple[str, ...]

    def __call__(self, placed: PlacedCell) -> pa.Table:
        """Return the table of the cell, and report it to the log and the listeners."""
        with progress.part(f"{placed.position}: {placed.title}") as report:
            result = self.computation.result(placed.cell)
            outcome = result["failure"]
            if not outcome:
                accuracy_percent = 100 * result["accuracy"]
                outcome = f"accuracy {accuracy_percent:.2f} %"
            report(outcome)
        progress.results.publish(placed.title, placed.cell.identity(), result)
        return pa.Table.from_pylist([result], schema=RESULT)

    def facts(self) -> Mapping[str, str]:
        """Return what decides the results of all cells, besides their inputs."""
        devices = [arithmetic(compute, prepare_device(compute)) for compute in self.computes]
        return {
            "teacher": self.computation.teacher_fingerprint,
            "device or number format": ", ".join(devices),
            "code or libraries": maker_fingerprint(CellComputation, load_model),
            "students' code": " ".join(map(factory_digest, self.architectures)),
        }


def comparison_shards(
    inputs: ComparisonInputs, blocks: Blocks, params: ComparisonParams
) -> ShardMakers:
    """Return one maker per cell, named after it and a fingerprint of all its result depends on.

    Code and library versions count: with others, all cells are computed again.

    A cell that cannot be computed (a rule that selects nothing, a loss that is not finite) becomes
    a row with the reason, and the other cells are computed.

    Raises:
        InputError: the grid cannot be made from these inputs; nothing has been computed then.
        UnavailableError: from a maker: memory ran out, or images cannot be read now.
    """
    cells = make_cells(params, blocks)
    if params.curves is not None:
        inputs = inputs.watching(params.curves.n_images)
    inputs = inputs.without_excluded()
    _check(inputs, cells, params)
    computation = CellComputation(inputs, params.hint_share)
    arguments: dict[str, PlacedCell] = {}
    n_cells = len(cells)
    for number, cell in enumerate(cells, start=1):
        position = f"cell {number} of {n_cells}"
        name = _shard_name(cell, inputs, params)
        title = _title(cell, params)
        arguments[name] = PlacedCell(cell, title, position)
    # A model of pydantic cannot be in a set.
    computes: dict[str, ComputeParams] = {}
    for cell in cells:
        for compute in computes_of(cell):
            computes[compute.model_dump_json()] = compute
    architectures = {cell.blocks.distillation.student_architecture for cell in cells}
    work = CellWork(computation, tuple(computes.values()), tuple(sorted(architectures)))
    return ShardMakers(work, arguments)


def computes_of(cell: Cell) -> list[ComputeParams]:
    """Return the devices and number formats that a cell uses."""
    computes = [cell.blocks.distillation.compute]
    if cell.needs_pu:
        computes.append(cell.blocks.pu_training.compute)
    if METHODS[cell.method].samples_by_relatedness:
        computes.append(cell.blocks.relatedness.compute)
    return computes


def _title(cell: Cell, params: ComparisonParams) -> str:
    """Return the name of a cell in logs, which no other cell of the comparison has."""
    if params.n_updates is None:
        return str(cell)
    return f"{cell}, {cell.blocks.distillation.n_updates:,} updates"


def _shard_name(cell: Cell, inputs: ComparisonInputs, params: ComparisonParams) -> str:
    """Return the name of a cell's file; another key here renames the files of finished cells."""
    facts: dict[str, Any] = {"maker": maker_fingerprint(CellComputation, load_model)}
    facts.update(cell.identity())
    facts.update(inputs.fingerprints)
    # Only what this method reads: a change of the rest must not make its cells be computed again.
    method = METHODS[cell.method]
    if method.labeled_images == "original":
        facts["teacher_training_images"] = inputs.teacher_training_images.fingerprint
    if method.uses_hint_share:
        facts["hint_share"] = params.hint_share
    reads_pool = method.selects or method.samples_by_relatedness
    if inputs.yardstick_fingerprint is not None:
        facts["yardstick"] = inputs.yardstick_fingerprint
    excluded_ids = inputs.excluded.pool
    if excluded_ids and reads_pool:
        facts["excluded"] = sorted(excluded_ids)
    text = json.dumps(facts, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    short_digest = digest[:12]
    return f"{cell.file_name}-{short_digest}"


def _check(inputs: ComparisonInputs, cells: Sequence[Cell], params: ComparisonParams) -> None:
    """Find before the first cell what would stop the last one.

    Raises:
        InputError: labels, labeled images or original images are missing, or a student cannot be
            built.
    """
    _check_labels("labeled", inputs.labeled_images)
    _check_labels("test", inputs.test_images)
    most = max(params.labeled_per_class)
    fewest = _smallest_class(inputs)
    if fewest < most:
        raise InputError(
            f"comparison.labeled_per_class asks for {most} images of each class, "
            f"and the labeled store has a class with {fewest} that students may learn from: "
            "raise per_class of data_ingestion.labeled, lower yardstick.labeled_share, "
            "or ask for fewer"
        )
    methods = [METHODS[cell.method] for cell in cells]
    uses_original = any(method.labeled_images == "original" for method in methods)
    has_original = len(inputs.teacher_training_images) > 0
    if uses_original and not has_original:
        raise InputError(
            "comparison: a variant distills on the teacher's training images, and none exist: "
            "give data_ingestion.teacher_training a source, or set that variant to null"
        )
    # Cells of a variant differ in nothing that the checks of its student read.
    cell_by_variant = {cell.variant: cell for cell in cells}
    for cell in cell_by_variant.values():
        _check_student(inputs, cell)


def _check_labels(name: str, images: ImageStore) -> None:
    labels = images.index["label"]
    if not len(labels) or labels.isna().any():
        raise InputError(
            f"comparison: the {name} images need labels: "
            f"set `labels: classes` on data_ingestion.{name}"
        )


def _smallest_class(inputs: ComparisonInputs) -> int:
    """Return the number of labeled images of the class that has the fewest."""
    labels = inputs.labeled_images.index["label"]
    counts = labels.value_counts()
    # Classes without an image are not counted.
    if len(counts) != inputs.teacher.n_classes:
        return 0
    return int(counts.min())


def _check_student(inputs: ComparisonInputs, cell: Cell) -> None:
    params = cell.blocks.distillation
    if METHODS[cell.method].labeled_images == "none" and params.final_phase.share > 0:
        raise InputError(
            f"comparison.variants.{cell.variant}.distillation.final_phase.share is "
            f"{params.final_phase.share}, and the method {cell.method!r} has no labeled images to "
            "end on: set it to 0 for this variant"
        )
    start = STARTS.get(cell.method)
    try:
        new_student(inputs.teacher, params.student_architecture, params.student_options, {})
        if start is not None and start.check is not None:
            start.check(inputs.teacher, params)
    except ValueError as exc:
        raise InputError(f"comparison.variants.{cell.variant}: {exc}") from exc
