"""Computing the cells of a comparison one after another."""

from __future__ import annotations

import time
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pu_kd_pipeline import progress
from pu_kd_pipeline.comparison.grid import Cell
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.manifests import (
    SELECTION_COLUMNS,
    UnselectedManifests,
    n_pool_images,
    selected_manifest,
)
from pu_kd_pipeline.comparison.pool_scores import PoolScorer, ScoredPool
from pu_kd_pipeline.comparison.starts import STARTS
from pu_kd_pipeline.errors import UnavailableError, first_line
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.metrics import accuracy, agreement, per_class_accuracy
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.comparison import METHODS
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.selection.class_weights import compute_class_weights
from pu_kd_pipeline.storage.manifest import CLASS_WEIGHTS, MEAN_SAMPLE_WEIGHT
from pu_kd_pipeline.storage.sharded_table import InMemoryTable, ShardedTable, fixed_size_list
from pu_kd_pipeline.training.checkpoints import checkpoints_disabled
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.objectives.factory import OBJECTIVES
from pu_kd_pipeline.training.shared_logits import SharedTeacherLogits

# The order is that of the result files of earlier versions.
RESULT = pa.schema(
    [
        ("variant", pa.string()),
        ("method", pa.string()),
        ("rule", pa.string()),
        ("criterion", pa.string()),
        ("features", pa.string()),
        ("objective", pa.string()),
        ("labeled_per_class", pa.int64()),
        ("seed", pa.int64()),
        ("n_updates", pa.int64()),
        ("accuracy", pa.float64()),
        ("agreement", pa.float64()),
        ("yardstick_agreement", pa.float64()),
        ("yardstick_kl", pa.float64()),
        ("teacher_accuracy", pa.float64()),
        ("n_labeled", pa.int64()),
        ("n_selected", pa.int64()),
        ("n_pool", pa.int64()),
        ("n_test", pa.int64()),
        *((name, pa.float64()) for name in SELECTION_COLUMNS),
        ("pu_seconds", pa.float64()),
        ("seconds", pa.float64()),
        ("is_reference", pa.bool_()),
        ("failure", pa.string()),
        ("note", pa.string()),
        ("curve_updates", pa.list_(pa.int64())),
        ("curve_accuracy", pa.list_(pa.float64())),
        # In the order of the test images, of which the second column is the fingerprint.
        ("is_correct", pa.list_(pa.bool_())),
        ("test_images", pa.string()),
        # How many images the two numbers of the yardstick are of, and its fingerprint.
        ("n_yardstick", pa.int64()),
        ("yardstick", pa.string()),
        # In the order of the classes; nan for a class without test images.
        ("per_class_accuracy", pa.list_(pa.float64())),
        # Of the images that class weights are for; null where the objective reads none.
        ("mean_sample_weight", pa.float64()),
        # The fingerprint of the teacher.
        ("teacher", pa.string()),
    ]
)


# The key of a result that holds the student's history: column -> values.
HISTORY = "history"


class LearnedStudent(NamedTuple):
    """The student of a cell, and what it learned from."""

    student: Model
    history: pd.DataFrame
    manifest: pd.DataFrame
    selection: dict[str, Any]
    """`SELECTION_COLUMNS`; empty for a method that selects nothing."""


class CellComputation:
    """Computes cells one after another, and keeps what the next ones share.

    Args:
        inputs: what all cells share.
        hint_share: of `ComparisonParams`.
        has_short_trainings: the teacher's outputs for all views are computed once for all cells,
            also where a single cell shows fewer; the results are the same.
        sends_scores: other processes get the scores of the pool that are there when they start, and
            train no PU classifier for these.
    """

    def __init__(
        self,
        inputs: ComparisonInputs,
        hint_share: float,
        *,
        has_short_trainings: bool = False,
        sends_scores: bool = False,
    ) -> None:
        self._inputs = inputs
        self._hint_share = hint_share
        self._has_short_trainings = has_short_trainings
        self._sends_scores = sends_scores
        self._scorer = PoolScorer(inputs)
        self._unselected = UnselectedManifests(inputs)
        self._teacher_classes: np.ndarray | None = None
        self._shared_logits = SharedTeacherLogits(is_for_many=has_short_trainings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the inputs, and with `sends_scores` the scores of the pool.

        All else that cells share is computed by each process for itself.
        """
        make = partial(
            CellComputation,
            has_short_trainings=self._has_short_trainings,
            sends_scores=self._sends_scores,
        )
        arguments = (self._inputs, self._hint_share)
        if not self._sends_scores:
            return make, arguments
        return make, arguments, {"scores": self._scorer.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__reduce__` sends along."""
        self._scorer.memory = state["scores"]

    @property
    def teacher_fingerprint(self) -> str:
        """The fingerprint of the teacher."""
        return self._teacher_fingerprint

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's row of the results.

        `seconds` leaves out the PU training, which several cells share, and contains the teacher's
        outputs for the images that no earlier cell learned from.

        Raises:
            UnavailableError: memory ran out, or images cannot be read now.
        """
        row: dict[str, Any] = dict.fromkeys(RESULT.names)
        row.update(
            variant=cell.variant,
            method=cell.method,
            rule=cell.rule,
            objective=cell.objective,
            seed=cell.seed,
            labeled_per_class=cell.labeled_per_class,
            is_reference=cell.is_reference,
            n_updates=cell.blocks.distillation.n_updates,
            n_pool=len(self._inputs.pool_images),
            n_test=len(self._inputs.test_images),
            test_images=self._inputs.test_images.fingerprint,
            teacher=self._teacher_fingerprint,
            n_yardstick=len(self._inputs.yardstick or ()),
            yardstick=self._inputs.yardstick_fingerprint,
            seconds=0.0,
        )
        if cell.needs_pu:
            row["criterion"] = cell.blocks.subset_materialization.criterion
            row["features"] = cell.blocks.pu_training.features
        try:
            # The trainings inside of a cell publish no progress and write no checkpoints: a cell
            # is done as a whole.
            with progress.records.muted(), checkpoints_disabled():
                row.update(self._outcome(cell))
        except UnavailableError:
            # A failure that is written down is final, and this one may not happen again: with more
            # memory, or when a store answers again.
            raise
        except (ValueError, FloatingPointError) as exc:  # InputError is a ValueError
            row["failure"] = first_line(exc)
        return row

    def scored_pool(self, cell: Cell) -> ScoredPool | None:
        """Return the scores that a cell's rule reads; None for a method that selects nothing."""
        if cell.rule is None:
            return None
        return self._scorer.scored_pool(cell)

    def learn(self, cell: Cell) -> LearnedStudent:
        """Return the student of a cell, and what it learned from; no test image is read.

        Raises:
            InputError: the rule cannot select from this pool, the objective cannot be used with
                these networks, the loss is not finite, or memory runs out.
        """
        pool = self.scored_pool(cell)
        selection: dict[str, Any] = {}
        if pool is None:
            manifest = self._unselected.manifest(cell)
        else:
            manifest, selection = self._select(cell, pool)
        student, history = self._student(cell, manifest)
        return LearnedStudent(student, history, manifest, selection)

    def _outcome(self, cell: Cell) -> dict[str, Any]:
        compute = cell.blocks.distillation.compute
        teacher_classes = self._teachers_classes(compute)
        pool = self.scored_pool(cell)
        started = time.perf_counter()
        student, history, manifest, selection = self.learn(cell)
        logits = predict_logits(student, self._inputs.test_images, compute)
        classes = logits.argmax(dim=1).numpy()
        kept = history[history["is_kept"]].iloc[-1]
        return {
            **selection,
            "accuracy": accuracy(classes, self._truth),
            "is_correct": (classes == self._truth).tolist(),
            "agreement": agreement(classes, teacher_classes),
            "per_class_accuracy": per_class_accuracy(
                classes, self._truth, self._inputs.teacher.n_classes
            ).tolist(),
            "mean_sample_weight": _mean_sample_weight(student),
            "yardstick_agreement": kept.get("yardstick_agreement"),
            "yardstick_kl": kept.get("yardstick_kl"),
            "teacher_accuracy": accuracy(teacher_classes, self._truth),
            "n_labeled": int((manifest["origin"] == "labeled").sum()),
            "n_selected": n_pool_images(manifest),
            "pu_seconds": None if pool is None else pool.seconds,
            "seconds": time.perf_counter() - started,
            "note": student.card.origin.get("critic_collapse"),
            **_curve(history, cell.blocks.distillation.n_updates),
            # For listeners alone: no column has it.
            HISTORY: _numbers(history),
        }

    @cached_property
    def _teacher_fingerprint(self) -> str:
        return self._inputs.teacher.fingerprint()

    @cached_property
    def _truth(self) -> np.ndarray:
        return self._inputs.test_images.index["label"].to_numpy(dtype=np.int64)

    def _teachers_classes(self, compute: ComputeParams) -> np.ndarray:
        """Return the teacher's class of each test image, computed for the first cell."""
        if self._teacher_classes is None:
            logits = predict_logits(self._inputs.teacher, self._inputs.test_images, compute)
            self._teacher_classes = logits.argmax(dim=1).numpy()
        return self._teacher_classes

    def _select(self, cell: Cell, pool: ScoredPool) -> tuple[pd.DataFrame, dict[str, Any]]:
        budget = None
        if cell.like is not None:
            # The other cell may not have been computed in this run, and selecting is cheap.
            other_pool = self._scorer.scored_pool(cell.like)
            other, _ = self._select(cell.like, other_pool)
            budget = n_pool_images(other)
        return selected_manifest(self._inputs, cell, pool, budget, self._shared_logits)

    def _student(self, cell: Cell, manifest: pd.DataFrame) -> tuple[Model, pd.DataFrame]:
        labeled = self._inputs.cell_labeled_images(cell)
        params = cell.blocks.distillation
        state = None
        if METHODS[cell.method].has_own_start:
            start = STARTS[cell.method]
            state, params = start.make(self._inputs.teacher, labeled, params, self._hint_share)
        vectors = self._weight_vectors(cell, manifest, labeled)
        return distill(
            manifest,
            labeled,
            self._inputs.pool_images,
            self._inputs.teacher,
            vectors,
            params,
            name="distillation",
            start=state,
            watched=self._inputs.watched_images,
            yardstick=self._inputs.yardstick,
            shared_logits=self._shared_logits,
        )

    def _weight_vectors(
        self, cell: Cell, manifest: pd.DataFrame, labeled: ImageStore
    ) -> pd.DataFrame:
        teacher = self._inputs.teacher
        if not OBJECTIVES[cell.objective].needs_class_weights:
            return pd.DataFrame(np.ones((1, teacher.n_classes)))
        features: ShardedTable = self._inputs.labeled_features
        if METHODS[cell.method].labeled_images == "original":
            # No stage extracts features of these images: the weights need only the logits.
            compute = cell.blocks.distillation.compute
            logits = predict_logits(teacher, labeled, compute).numpy()
            ids = pa.array(labeled.index["id"], pa.string())
            table = pa.table({"id": ids, "logits": fixed_size_list(logits)})
            features = InMemoryTable.of(labeled.fingerprint, [table])
        _, vectors = compute_class_weights(
            manifest,
            features,
            self._inputs.pool_features,
            teacher.card.classes,
            cell.blocks.class_weighting,
        )
        return vectors


def _mean_sample_weight(student: Model) -> float | None:
    facts = student.card.origin.get(CLASS_WEIGHTS) or {}
    return facts.get(MEAN_SAMPLE_WEIGHT)


def _numbers(history: pd.DataFrame) -> dict[str, list[float]]:
    """Return the columns of numbers of a student's history, `update` among them."""
    numbers = history.select_dtypes("number")
    return {str(name): numbers[name].tolist() for name in numbers}


def _curve(history: pd.DataFrame, n_updates: int) -> dict[str, Any]:
    """Return accuracy by updates of the student's whole training, where it was monitored."""
    if "watched_accuracy" not in history:
        return {}
    # Updates before the distillation, such as FitNet's hints, are not in its history.
    n_before = n_updates - history["update"].iloc[-1]
    updates = history["update"] + n_before
    return {
        "curve_updates": updates.astype(int).tolist(),
        "curve_accuracy": history["watched_accuracy"].tolist(),
    }
