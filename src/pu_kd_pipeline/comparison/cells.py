"""The cells of a comparison: their names and their order; all faults of the grid are found before the first."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from pu_kd_pipeline import progress
from pu_kd_pipeline.comparison.computation import RESULT, CellComputation
from pu_kd_pipeline.comparison.grid import Blocks, Cell, cells_of
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.starts import STARTS
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.params.comparison import METHODS, ComparisonParams

logger = logging.getLogger(__name__)
RESULTS_VERSION = 1  # a higher one has every cell computed again


def comparison_shards(
    inputs: ComparisonInputs, blocks: Blocks, params: ComparisonParams
) -> dict[str, Callable[[], pa.Table]]:
    """Return one maker a cell, named after it and the fingerprint of all that its result depends on.

    A cell that cannot be computed (a rule that selects nothing, a loss that is not finite) becomes a row that says
    why, and the others go on.

    Raises:
        InputError: the grid cannot be made from these inputs; nothing has been computed then. From a maker: memory ran
            out.
    """
    cells = cells_of(params, blocks)
    if params.curves is not None:
        inputs = inputs.watching(params.curves.n_images)
    inputs = inputs.without_excluded()
    _check(inputs, cells, params)
    bench = CellComputation(inputs, params.hint_share)

    def maker(cell: Cell, number: int) -> Callable[[], pa.Table]:
        def make() -> pa.Table:
            logger.info("cell %d of %d: %s", number, len(cells), cell)
            result = bench.result(cell)
            outcome = result["failure"] or f"accuracy {100 * result['accuracy']:.2f} %"
            logger.info(
                "cell %d of %d: %s (%.0f s)", number, len(cells), outcome, result["seconds"]
            )
            progress.results.publish(str(cell), cell.identity(), result)
            return pa.Table.from_pylist([result], schema=RESULT)

        return make

    return {
        _name(cell, inputs, params): maker(cell, number)
        for number, cell in enumerate(cells, start=1)
    }


def _name(cell: Cell, inputs: ComparisonInputs, params: ComparisonParams) -> str:
    about: dict[str, Any] = {"version": RESULTS_VERSION, **cell.identity(), **inputs.fingerprints}
    method = METHODS[cell.method]
    if method.labeled_images == "original":
        about["teacher_training_images"] = inputs.teacher_training_images.fingerprint
    if method.uses_hint_share:
        about["hint_share"] = params.hint_share
    if inputs.excluded.pool and (cell.rule or method.samples_by_relatedness):
        about["excluded"] = sorted(inputs.excluded.pool)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return f"{cell.file_name}-{digest}"


def _check(inputs: ComparisonInputs, cells: Sequence[Cell], params: ComparisonParams) -> None:
    """Find out before the first cell what would stop the last one."""
    for name, images in (("labeled", inputs.labeled_images), ("test", inputs.test_images)):
        labels = images.index["label"]
        if not len(labels) or labels.isna().any():
            raise InputError(
                f"comparison: the {name} images need labels: set `labels: classes` on data_ingestion.{name}"
            )
    counts = inputs.labeled_images.index["label"].value_counts()
    fewest, most = (
        int(counts.min()) if len(counts) == inputs.teacher.n_classes else 0,
        max(params.labeled_per_class),
    )
    if fewest < most:
        raise InputError(
            f"comparison.labeled_per_class asks for {most} images of each class, and the labeled store has a class "
            f"with {fewest}: raise per_class of data_ingestion.labeled, or ask for fewer"
        )
    uses_original = any(METHODS[cell.method].labeled_images == "original" for cell in cells)
    if uses_original and not len(inputs.teacher_training_images):
        raise InputError(
            "comparison: a variant distills on the teacher's training images, and there are none: give "
            "data_ingestion.teacher_training a source, or set that variant to null"
        )
    for cell in {cell.variant: cell for cell in cells}.values():
        student = cell.blocks.distillation
        try:
            new_student(inputs.teacher, student.student_architecture, student.student_options, {})
            start = STARTS.get(cell.method)
            if start is not None and start.check is not None:
                start.check(inputs.teacher, student)
        except ValueError as exc:
            raise InputError(f"comparison.variants.{cell.variant}: {exc}") from exc
