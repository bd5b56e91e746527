"""A comparison of students, cell by cell: what the cells share, and what each comes to.

All cells have the teacher, the features and the images in common; those of one seed and one number of labeled images
also their PU training. Every student gets the same number of updates. The grid is in `comparison_grid`, the table and
the plot of the results in `comparison_report`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra.checkpoints import unkept
from pu_kd_pipeline.infra.class_weighting import weigh_classes
from pu_kd_pipeline.infra.comparison_grid import Blocks, Cell, cells_of
from pu_kd_pipeline.infra.comparison_students import check_fskd, fitnet_start, fskd_start
from pu_kd_pipeline.infra.devices import MemoryShortage
from pu_kd_pipeline.infra.distillation import distil
from pu_kd_pipeline.infra.duplicates import NOTHING_EXCLUDED, Excluded
from pu_kd_pipeline.infra.evaluation import describe_selection
from pu_kd_pipeline.infra.features import score_shards
from pu_kd_pipeline.infra.figures import RULES_BY_CONFIDENCE
from pu_kd_pipeline.infra.image_batches import predict_logits
from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.model_files import Model, new_student
from pu_kd_pipeline.infra.progress import publish_result, unpublished
from pu_kd_pipeline.infra.proxy import Proxy
from pu_kd_pipeline.infra.pu_training import estimate_prior, given_prior, train_end_to_end, train_head
from pu_kd_pipeline.infra.relatedness import preferential_manifest, relatedness_shards
from pu_kd_pipeline.infra.sharded_table import ShardedTable, as_array, fixed_size_list
from pu_kd_pipeline.infra.subsets import SubsetInputs, choose_subset
from pu_kd_pipeline.learning.metrics import accuracy, agreement
from pu_kd_pipeline.params import ComparisonParams, PUTrainingParams, RelatednessParams, SubsetParams

logger = logging.getLogger(__name__)

RESULTS_VERSION = 1  # a higher one has every cell computed again
_TEXTS = ("variant", "method", "rule", "criterion", "features", "objective")
_NUMBERS = ("accuracy", "agreement", "held_out_agreement", "teacher_accuracy")
_OF_SELECTION = ("auc", "precision", "recall", "class_prior", "true_class_prior")
RESULT = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.int64()) for name in ("labeled_per_class", "seed", "n_updates")),
        *((name, pa.float64()) for name in _NUMBERS),
        *((name, pa.int64()) for name in ("n_labeled", "n_selected", "n_pool", "n_test")),
        *((name, pa.float64()) for name in (*_OF_SELECTION, "pu_seconds", "seconds")),
        ("is_reference", pa.bool_()),
        ("failure", pa.string()),
        ("note", pa.string()),
        ("curve_updates", pa.list_(pa.int64())),
        ("curve_accuracy", pa.list_(pa.float64())),
    ]
)


# --- what the cells read ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparisonInputs:
    """What all cells have in common."""

    teacher: Model
    labeled_images: ImageStore
    pool_images: ImageStore
    test_images: ImageStore
    teacher_training_images: ImageStore
    labeled_features: ShardedTable
    pool_features: ShardedTable
    watched_images: ImageStore | None = None
    excluded: Excluded = NOTHING_EXCLUDED

    def watching(self, n_images: int) -> ComparisonInputs:
        """Return the inputs with so many of the teacher's training images set aside, as `watched_images`.

        They are drawn among those that have a label and are not in the pool, and are taken out of the others.
        """
        index = self.teacher_training_images.index
        is_free = index["label"].notna() & ~index["sha256"].isin(self.pool_images.index["sha256"])
        free = np.flatnonzero(is_free.to_numpy())
        if n_images >= len(free):
            raise InputError(
                f"comparison.curves.n_images is {n_images:,}, and {len(free):,} of the teacher's training images have "
                "a label and are not in the pool: lower it, or set comparison.curves to null"
            )
        rows = np.sort(np.random.default_rng(0).choice(free, n_images, replace=False))
        watched = ImageSubset.of(self.teacher_training_images, rows)
        return replace(
            self,
            watched_images=watched,
            labeled_images=_without(self.labeled_images, watched),
            teacher_training_images=_without(self.teacher_training_images, watched),
        )

    def without_excluded(self) -> ComparisonInputs:
        """Return the inputs without the excluded labeled images; those of the pool are left out by each selection."""
        is_excluded = self.labeled_images.index["id"].isin(self.excluded.labeled).to_numpy()
        if not is_excluded.any():
            return self
        return replace(self, labeled_images=ImageSubset.of(self.labeled_images, np.flatnonzero(~is_excluded)))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What the results depend on, by name."""
        names = ["labeled_images", "pool_images", "test_images", "labeled_features", "pool_features"]
        names += ["watched_images"] if self.watched_images is not None else []
        return {"teacher": self.teacher.fingerprint(), **{name: getattr(self, name).fingerprint for name in names}}


@dataclass(frozen=True, eq=False)
class ImageSubset(ImageStore):
    """Some rows of a store. Length, index, fingerprint and `read` are the subset's; shards are the whole store's."""

    store: ImageStore
    rows: np.ndarray

    @staticmethod
    def of(store: ImageStore, rows: np.ndarray) -> ImageSubset:
        """Return those rows of a store, in that order."""
        return ImageSubset(store.folder, store.specification, store.shards, store.quarantine_counts, store, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row an image, as in the store."""
        return self.store.index.iloc[self.rows].reset_index(drop=True)

    @cached_property
    def fingerprint(self) -> str:
        """Of the store and the rows."""
        return hashlib.sha256(self.store.fingerprint.encode() + self.rows.tobytes()).hexdigest()[:16]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, C, H, W) uint8 images at (n,) positions among the rows."""
        return self.store.read(self.rows[rows])


def _without(images: ImageStore, others: ImageStore) -> ImageSubset:
    is_other = images.index["sha256"].isin(others.index["sha256"])
    return ImageSubset.of(images, np.flatnonzero(~is_other.to_numpy()))


@dataclass(frozen=True)
class TableInMemory(ShardedTable):
    """Tables that are kept nowhere, read like the shards of one."""

    tables: tuple[pa.Table, ...]

    @staticmethod
    def of(name: str, tables: Sequence[pa.Table]) -> TableInMemory:
        """Return the tables as one."""
        return TableInMemory(Path(), (name,), tuple(tables))

    def __len__(self) -> int:
        return sum(table.num_rows for table in self.tables)

    @property
    def facts(self) -> dict[str, str]:
        """What the first table's metadata says."""
        metadata = self.tables[0].schema.metadata if self.tables else None
        return {key.decode(): value.decode() for key, value in (metadata or {}).items()}

    def shards(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the tables."""
        for table in self.tables:
            yield table.select(list(columns)) if columns else table


def labeled_rows(images: ImageStore, n_per_class: int, seed: int) -> np.ndarray:
    """Return the ascending rows of `n_per_class` images of each class: the first of the seed's permutation of it.

    A seed's draws of a smaller number are contained in those of a larger one.
    """
    labels = images.index["label"].to_numpy(dtype=np.int64)
    drawn = [
        np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))[:n_per_class]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


# --- the plan ---------------------------------------------------------------------------------------------------------


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
    bench = _Bench(inputs, params.hint_share)

    def maker(cell: Cell, number: int) -> Callable[[], pa.Table]:
        def make() -> pa.Table:
            logger.info("cell %d of %d: %s", number, len(cells), cell)
            result = bench.result(cell)
            outcome = result["failure"] or f"accuracy {100 * result['accuracy']:.2f} %"
            logger.info("cell %d of %d: %s (%.0f s)", number, len(cells), outcome, result["seconds"])
            publish_result(str(cell), cell.identity(), result)
            return pa.Table.from_pylist([result], schema=RESULT)

        return make

    return {_name(cell, inputs, params): maker(cell, number) for number, cell in enumerate(cells, start=1)}


def _name(cell: Cell, inputs: ComparisonInputs, params: ComparisonParams) -> str:
    about: dict[str, Any] = {"version": RESULTS_VERSION, **cell.identity(), **inputs.fingerprints}
    if cell.method == "original":
        about["teacher_training_images"] = inputs.teacher_training_images.fingerprint
    if cell.method == "fitnet":
        about["hint_share"] = params.hint_share
    if inputs.excluded.pool and (cell.rule or cell.method == "preferential"):
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
    fewest, most = int(counts.min()) if len(counts) == inputs.teacher.n_classes else 0, max(params.labeled_per_class)
    if fewest < most:
        raise InputError(
            f"comparison.labeled_per_class asks for {most} images of each class, and the labeled store has a class "
            f"with {fewest}: raise per_class of data_ingestion.labeled, or ask for fewer"
        )
    if any(cell.method == "original" for cell in cells) and not len(inputs.teacher_training_images):
        raise InputError(
            "comparison: a variant distils on the teacher's training images, and there are none: give "
            "data_ingestion.teacher_training a source, or set that variant to null"
        )
    for cell in {cell.variant: cell for cell in cells}.values():
        student = cell.blocks.distillation
        try:
            new_student(inputs.teacher, student.student_architecture, student.student_options, {})
            if cell.method == "fskd":
                check_fskd(inputs.teacher, student)
        except ValueError as exc:
            raise InputError(f"comparison.variants.{cell.variant}: {exc}") from exc


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """What is known of the pool before a rule selects."""

    pool: TableInMemory
    class_prior: dict[str, Any]
    held_out_ranks: pd.DataFrame
    seconds: float | None


class _Bench:
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
            **{name: getattr(cell, name) for name in ("variant", "method", "rule", "objective", "seed")},
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
            with unpublished(), unkept():
                return about | self._outcome(cell)
        except MemoryShortage:  # a cell that is kept would stay without a result where there is memory again
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
        manifest, selection = self._selected(cell, scores) if scores else (self._everything(cell), {})
        student, history = self._student(cell, manifest)
        classes = predict_logits(student, self._inputs.test_images, compute).argmax(dim=1).numpy()
        kept = history[history["is_kept"]].iloc[-1]
        curve = {}
        if "watched_accuracy" in history:
            updates = history["update"] + (cell.blocks.distillation.n_updates - history["update"].iloc[-1])
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
        if cell.method == "original":
            return self._inputs.teacher_training_images
        if cell.labeled_per_class is None:
            return ImageSubset.of(self._inputs.labeled_images, np.empty(0, dtype=np.int64))
        images = self._inputs.labeled_images
        return ImageSubset.of(images, labeled_rows(images, cell.labeled_per_class, cell.seed))

    def _everything(self, cell: Cell) -> pd.DataFrame:
        """Return the manifest of a method that selects nothing: its labeled or original images, or the whole pool."""
        if cell.method == "preferential":
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
        if not cell.needs_pu and cell.rule not in RULES_BY_CONFIDENCE:
            facts["auc"] = None  # a rule that ranks nothing
        return manifest, {name: facts.get(name) for name in _OF_SELECTION}

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
            scores = {"pu_score": confidence, "teacher_class": classes.int(), "teacher_confidence": confidence}
            tables.append(pa.table({"id": table["id"], **{name: value.numpy() for name, value in scores.items()}}))
        prior = dict.fromkeys(("value", "lower", "upper", "method"))
        return _Scores(TableInMemory.of("confidence", tables), prior, pd.DataFrame({"rank": []}), None)

    def _pu_scores(self, cell: Cell) -> _Scores:
        started = time.perf_counter()
        inputs, images, params = self._inputs, self._labeled(cell), cell.blocks.pu_training
        labeled, pool = self._features_of(images), inputs.pool_features
        prior = self._class_prior(labeled, params)
        if params.backbone == "frozen":
            classifier, _, ranks = train_head(labeled, pool, inputs.teacher, prior["value"], params)
        else:
            classifier, _, ranks = train_end_to_end(images, inputs.pool_images, inputs.teacher, prior["value"], params)
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
        if cell.method == "fskd":
            start = fskd_start(inputs.teacher, labeled, params)
        if cell.method == "fitnet":
            n_hints = min(max(1, round(self._hint_share * params.n_updates)), params.n_updates - 1)
            start = fitnet_start(inputs.teacher, labeled, params, n_hints)
            params = params.model_copy(update={"n_updates": params.n_updates - n_hints})
        vectors = self._weight_vectors(cell, manifest, labeled)
        return distil(
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

    def _weight_vectors(self, cell: Cell, manifest: pd.DataFrame, labeled: ImageStore) -> pd.DataFrame:
        teacher = self._inputs.teacher
        if cell.objective != "robust_kd":
            return pd.DataFrame(np.ones((1, teacher.n_classes)))
        features: ShardedTable = self._inputs.labeled_features
        if cell.method == "original":
            logits = predict_logits(teacher, labeled, cell.blocks.distillation.compute).numpy()
            table = pa.table({"id": pa.array(labeled.index["id"], pa.string()), "logits": fixed_size_list(logits)})
            features = TableInMemory.of(labeled.fingerprint, [table])
        _, vectors = weigh_classes(
            manifest, features, self._inputs.pool_features, teacher.card.classes, cell.blocks.class_weighting
        )
        return vectors
