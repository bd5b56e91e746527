"""Computing the cells of a comparison one after another."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from pu_kd_pipeline import progress
from pu_kd_pipeline.comparison.grid import Cell
from pu_kd_pipeline.comparison.inputs import ComparisonInputs, labeled_rows
from pu_kd_pipeline.comparison.starts import STARTS
from pu_kd_pipeline.devices import MemoryShortage
from pu_kd_pipeline.evaluation import describe_selection
from pu_kd_pipeline.features.scoring import score_shards
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.learning.metrics import accuracy, agreement
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.comparison import METHODS
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.selection.class_weights import weigh_classes
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
from pu_kd_pipeline.selection.proxy import Proxy
from pu_kd_pipeline.selection.relatedness import preferential_manifest, relatedness_shards
from pu_kd_pipeline.storage.sharded_table import (
    ShardedTable,
    TableInMemory,
    as_array,
    fixed_size_list,
)
from pu_kd_pipeline.training.checkpoints import unkept
from pu_kd_pipeline.training.class_prior import estimate_prior, given_prior
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head

_TEXTS = ("variant", "method", "rule", "criterion", "features", "objective")
_NUMBERS = ("accuracy", "agreement", "held_out_agreement", "teacher_accuracy")
SELECTION_COLUMNS = ("auc", "precision", "recall", "class_prior", "true_class_prior")
RESULT = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.int64()) for name in ("labeled_per_class", "seed", "n_updates")),
        *((name, pa.float64()) for name in _NUMBERS),
        *((name, pa.int64()) for name in ("n_labeled", "n_selected", "n_pool", "n_test")),
        *((name, pa.float64()) for name in (*SELECTION_COLUMNS, "pu_seconds", "seconds")),
        ("is_reference", pa.bool_()),
        ("failure", pa.string()),
        ("note", pa.string()),
        ("curve_updates", pa.list_(pa.int64())),
        ("curve_accuracy", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class _Scores:
    """What is known of the pool before a rule selects."""

    pool: TableInMemory
    class_prior: dict[str, Any]
    held_out_ranks: pd.DataFrame
    seconds: float | None


class CellComputation:
    """Computes cells one after the other, and keeps what the next ones share."""

    def __init__(self, inputs: ComparisonInputs, hint_share: float) -> None:
        self._inputs, self._hint_share = inputs, hint_share
        self._drawn: tuple[int, int] | None = None
        self._known: dict[str, _Scores] = {}
        self._relatedness: dict[str, TableInMemory] = {}
        self._teacher_classes: np.ndarray | None = None

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's row of the results; `seconds` leaves out the PU training, which several cells share."""
        about: dict[str, Any] = dict.fromkeys(RESULT.names) | {
            **{
                name: getattr(cell, name)
                for name in ("variant", "method", "rule", "objective", "seed")
            },
            "labeled_per_class": cell.labeled_per_class,
            "is_reference": cell.is_reference,
            "n_updates": cell.blocks.distillation.n_updates,
            "n_pool": len(self._inputs.pool_images),
            "n_test": len(self._inputs.test_images),
            "seconds": 0.0,
        }
        if cell.needs_pu:
            about["criterion"] = cell.blocks.subset_materialization.criterion
            about["features"] = cell.blocks.pu_training.features
        try:
            with progress.records.muted(), unkept():
                return about | self._outcome(cell)
        except (
            MemoryShortage
        ):  # a cell that is kept would stay without a result where there is memory again
            raise
        except (ValueError, FloatingPointError) as exc:  # InputError among them
            return about | {"failure": str(exc).splitlines()[0]}

    def _outcome(self, cell: Cell) -> dict[str, Any]:
        compute, truth = cell.blocks.distillation.compute, self._truth
        if self._teacher_classes is None:
            logits = predict_logits(self._inputs.teacher, self._inputs.test_images, compute)
            self._teacher_classes = logits.argmax(dim=1).numpy()
        scores = self._scores(cell) if cell.rule else None
        started = time.perf_counter()
        manifest, selection = (
            self._selected(cell, scores) if scores else (self._everything(cell), {})
        )
        student, history = self._student(cell, manifest)
        classes = predict_logits(student, self._inputs.test_images, compute).argmax(dim=1).numpy()
        kept = history[history["is_kept"]].iloc[-1]
        curve = {}
        if "watched_accuracy" in history:
            updates = history["update"] + (
                cell.blocks.distillation.n_updates - history["update"].iloc[-1]
            )
            curve = {
                "curve_updates": updates.astype(int).tolist(),
                "curve_accuracy": history["watched_accuracy"].tolist(),
            }
        return {
            **selection,
            "accuracy": accuracy(classes, truth),
            "agreement": agreement(classes, self._teacher_classes),
            "held_out_agreement": kept.get("held_out_agreement"),
            "teacher_accuracy": accuracy(self._teacher_classes, truth),
            "n_labeled": int((manifest["origin"] == "labeled").sum()),
            "n_selected": int((manifest["origin"] == "pool").sum()),
            "pu_seconds": scores.seconds if scores else None,
            "seconds": time.perf_counter() - started,
            "note": student.card.origin.get("critic_collapse"),
            **curve,
        }

    @cached_property
    def _truth(self) -> np.ndarray:
        return self._inputs.test_images.index["label"].to_numpy(dtype=np.int64)

    # --- which images ---

    def _labeled(self, cell: Cell) -> ImageStore:
        source = METHODS[cell.method].labeled_images
        if source == "original":
            return self._inputs.teacher_training_images
        if source == "none":
            return ImageSubset.of(self._inputs.labeled_images, np.empty(0, dtype=np.int64))
        assert cell.labeled_per_class is not None
        images = self._inputs.labeled_images
        return ImageSubset.of(images, labeled_rows(images, cell.labeled_per_class, cell.seed))

    def _everything(self, cell: Cell) -> pd.DataFrame:
        """Return the manifest of a method that selects nothing: its labeled or original images, or the whole pool."""
        if METHODS[cell.method].samples_by_relatedness:
            return self._by_relatedness(cell.blocks.relatedness)
        return self._labeled(cell).index[["id"]].assign(origin="labeled")

    def _by_relatedness(self, params: RelatednessParams) -> pd.DataFrame:
        measured = params.model_dump_json(include={"seed", "n_noise_images", "clip"})
        if measured not in self._relatedness:
            makers = relatedness_shards(self._inputs.pool_images, self._inputs.teacher, params)
            tables = tuple(make() for make in makers.values())
            self._relatedness[measured] = TableInMemory(Path(), tuple(makers), tables)
        return preferential_manifest(
            self._relatedness[measured], self._inputs.pool_images, params, self._inputs.excluded
        )

    def _selected(self, cell: Cell, scores: _Scores) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Return the manifest of a selection, and how good the selection is where the truth is known."""
        params: SubsetParams = cell.blocks.subset_materialization
        if cell.like:
            other, _ = self._selected(cell.like, self._scores(cell.like))
            params = params.model_copy(update={"budget": int((other["origin"] == "pool").sum())})
        pool_images = self._inputs.pool_images
        proxy = Proxy(self._inputs.teacher, self._inputs.pool_features, cell.blocks.distillation)
        inputs = SubsetInputs(
            scores.pool,
            self._labeled(cell),
            pool_images,
            scores.class_prior,
            scores.held_out_ranks,
            proxy,
            self._inputs.excluded,
        )
        manifest = choose_subset(inputs, params)
        facts = describe_selection(manifest, scores.pool, pool_images, scores.class_prior)
        assert cell.rule is not None
        if RULES[cell.rule].ranked_by is None:
            facts["auc"] = None
        return manifest, {name: facts.get(name) for name in SELECTION_COLUMNS}

    def _scores(self, cell: Cell) -> _Scores:
        """Return the pool's scores: the PU classifier's, or the teacher's confidence where a rule reads no PU score."""
        if (cell.labeled_per_class, cell.seed) != self._drawn:
            assert cell.labeled_per_class is not None
            self._drawn, self._known = (cell.labeled_per_class, cell.seed), {}
        key = cell.blocks.pu_training.model_dump_json() if cell.needs_pu else ""
        if key not in self._known:
            self._known[key] = self._pu_scores(cell) if cell.needs_pu else self._confidence
        return self._known[key]

    @cached_property
    def _confidence(self) -> _Scores:
        tables = []
        for table in self._inputs.pool_features.shards(["id", "logits"]):
            probabilities = torch.from_numpy(as_array(table["logits"]).copy()).softmax(dim=1)
            confidence, classes = probabilities.max(dim=1)
            scores = {
                "pu_score": confidence,
                "teacher_class": classes.int(),
                "teacher_confidence": confidence,
            }
            tables.append(
                pa.table(
                    {"id": table["id"], **{name: value.numpy() for name, value in scores.items()}}
                )
            )
        prior = dict.fromkeys(("value", "lower", "upper", "method"))
        return _Scores(
            TableInMemory.of("confidence", tables), prior, pd.DataFrame({"rank": []}), None
        )

    def _pu_scores(self, cell: Cell) -> _Scores:
        started = time.perf_counter()
        inputs, images, params = self._inputs, self._labeled(cell), cell.blocks.pu_training
        labeled, pool = self._features_of(images), inputs.pool_features
        prior = self._class_prior(labeled, params)
        if params.backbone == "frozen":
            classifier, _, ranks = train_head(labeled, pool, inputs.teacher, prior["value"], params)
        else:
            classifier, _, ranks = train_end_to_end(
                images, inputs.pool_images, inputs.teacher, prior["value"], params
            )
        makers = score_shards(pool, inputs.pool_images, classifier, params.compute)
        tables = [make() for make in makers.values()]
        scores = TableInMemory.of(classifier.fingerprint(), tables)
        return _Scores(scores, prior, ranks, time.perf_counter() - started)

    def _class_prior(self, labeled: ShardedTable, params: PUTrainingParams) -> dict[str, Any]:
        pool = self._inputs.pool_features
        if params.class_prior is not None:
            return given_prior(params.class_prior, labeled, pool)
        return estimate_prior(labeled, pool, params)

    def _features_of(self, images: ImageStore) -> TableInMemory:
        wanted = pa.array(images.index["id"], pa.string())
        shards = self._inputs.labeled_features.shards()
        tables = [table.filter(pa.compute.is_in(table["id"], wanted)) for table in shards]
        return TableInMemory.of(images.fingerprint, tables)

    # --- which student ---

    def _student(self, cell: Cell, manifest: pd.DataFrame) -> tuple[Model, pd.DataFrame]:
        inputs, labeled, params = self._inputs, self._labeled(cell), cell.blocks.distillation
        start = None
        if METHODS[cell.method].has_own_start:
            made = STARTS[cell.method].make(inputs.teacher, labeled, params, self._hint_share)
            start, params = made
        vectors = self._weight_vectors(cell, manifest, labeled)
        return distill(
            manifest,
            labeled,
            inputs.pool_images,
            inputs.teacher,
            vectors,
            params,
            name="distillation",
            start=start,
            watched=inputs.watched_images,
        )

    def _weight_vectors(
        self, cell: Cell, manifest: pd.DataFrame, labeled: ImageStore
    ) -> pd.DataFrame:
        teacher = self._inputs.teacher
        if cell.objective != "robust_kd":
            return pd.DataFrame(np.ones((1, teacher.n_classes)))
        features: ShardedTable = self._inputs.labeled_features
        if METHODS[cell.method].labeled_images == "original":
            logits = predict_logits(teacher, labeled, cell.blocks.distillation.compute).numpy()
            table = pa.table(
                {
                    "id": pa.array(labeled.index["id"], pa.string()),
                    "logits": fixed_size_list(logits),
                }
            )
            features = TableInMemory.of(labeled.fingerprint, [table])
        _, vectors = weigh_classes(
            manifest,
            features,
            self._inputs.pool_features,
            teacher.card.classes,
            cell.blocks.class_weighting,
        )
        return vectors
