"""The scores of the pool that the cells of a comparison select by, computed once per draw."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from pu_kd_pipeline.comparison.grid import Cell
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.features.reading import read_log_odds
from pu_kd_pipeline.features.scoring import score_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.class_prior.readings import read_outputs
from pu_kd_pipeline.learning.confidence import class_confidence
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.storage.sharded_table import InMemoryTable, ShardedTable, as_array
from pu_kd_pipeline.training.class_prior import estimate_prior, given_prior
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head

# The key of scores that need no training, next to those of PU parameters.
_UNTRAINED = ""


@dataclass(frozen=True)
class ScoredPool:
    """What is known of the pool before a rule selects."""

    scores: InMemoryTable
    class_prior: dict[str, Any]
    held_out_ranks: pd.DataFrame
    seconds: float | None
    """How long prior, classifier and scores took; None without a PU classifier."""
    prior_seconds: float | None = None
    """The part of it that the class prior took."""


class PoolScorer:
    """Scores the pool for cells, and remembers the scores of the current labeled images.

    Cells come seed by seed and number by number, so that scores of earlier draws are not needed
    again; keeping them would fill the memory.
    """

    def __init__(self, inputs: ComparisonInputs) -> None:
        self._inputs = inputs
        self._draw: tuple[int, int] | None = None  # labeled images per class, and seed
        self._scored: dict[str, ScoredPool] = {}

    @property
    def memory(self) -> tuple[tuple[int, int] | None, dict[str, ScoredPool]]:
        """What is remembered, for another process that scores for the same inputs."""
        return self._draw, self._scored

    @memory.setter
    def memory(self, memory: tuple[tuple[int, int] | None, dict[str, ScoredPool]]) -> None:
        self._draw, self._scored = memory

    def scored_pool(self, cell: Cell) -> ScoredPool:
        """Return the PU classifier's scores, or the teacher's confidence for a rule without one."""
        assert cell.labeled_per_class is not None
        draw = (cell.labeled_per_class, cell.seed)
        if draw != self._draw:
            self._draw = draw
            self._scored = {}
        if not cell.needs_pu:
            if _UNTRAINED not in self._scored:
                self._scored[_UNTRAINED] = self._by_outputs(cell)
            return self._scored[_UNTRAINED]
        key = cell.blocks.pu_training.model_dump_json()
        if key not in self._scored:
            self._scored[key] = self._by_classifier(cell)
        return self._scored[key]

    def _by_outputs(self, cell: Cell) -> ScoredPool:
        """Return what the teacher's outputs tell without any training."""
        labeled = self._features_of(self._inputs.cell_labeled_images(cell))
        outputs = (read_log_odds(labeled), read_log_odds(self._inputs.pool_features))
        by_dedpul, by_bbe = read_outputs(outputs)
        # Nothing was trained, so that there is no estimate.
        prior: dict[str, Any] = dict.fromkeys(("value", "lower", "upper", "method"))
        prior["readings"] = {"outputs": by_dedpul, "outputs_bbe": by_bbe}
        no_ranks = pd.DataFrame({"rank": []})
        return ScoredPool(self._confidence, prior, no_ranks, seconds=None)

    @cached_property
    def _confidence(self) -> InMemoryTable:
        tables = []
        for table in self._inputs.pool_features.shards(["id", "logits"]):
            # A copy: torch does not take the read-only memory of the table.
            stored_logits = as_array(table["logits"]).copy()
            logits = torch.from_numpy(stored_logits)
            teacher = class_confidence(logits)
            # Without `pu_score`: no PU classifier was trained.
            columns = {
                "id": table["id"],
                "teacher_class": teacher.classes.numpy(),
                "teacher_confidence": teacher.confidence.numpy(),
                "teacher_log_odds": teacher.log_odds.numpy(),
            }
            tables.append(pa.table(columns))
        return InMemoryTable.of("confidence", tables)

    def _by_classifier(self, cell: Cell) -> ScoredPool:
        started = time.perf_counter()
        teacher = self._inputs.teacher
        pool_images = self._inputs.pool_images
        pool_features = self._inputs.pool_features
        params = cell.blocks.pu_training
        labeled_images = self._inputs.cell_labeled_images(cell)
        labeled_features = self._features_of(labeled_images)
        prior = self._class_prior(labeled_features, params)
        prior_seconds = time.perf_counter() - started
        value = prior["value"]
        if params.backbone == "frozen":
            trained = train_head(labeled_features, pool_features, teacher, value, params)
        else:
            trained = train_end_to_end(labeled_images, pool_images, teacher, value, params)
        classifier, _, ranks = trained
        makers = score_shards(pool_features, pool_images, classifier, params.compute)
        tables = [make() for make in makers.values()]
        scores = InMemoryTable.of(classifier.fingerprint(), tables)
        seconds = time.perf_counter() - started
        return ScoredPool(scores, prior, ranks, seconds, prior_seconds)

    def _class_prior(self, labeled: ShardedTable, params: PUTrainingParams) -> dict[str, Any]:
        pool = self._inputs.pool_features
        # That of an audit was replaced by its number, see `with_audited_prior`.
        if isinstance(params.class_prior, float):
            return given_prior(params.class_prior, labeled, pool)
        return estimate_prior(labeled, pool, params)

    def _features_of(self, images: ImageStore) -> InMemoryTable:
        ids = pa.array(images.index["id"], pa.string())
        tables = []
        for table in self._inputs.labeled_features.shards():
            is_drawn = pa.compute.is_in(table["id"], ids)
            tables.append(table.filter(is_drawn))
        return InMemoryTable.of(images.fingerprint, tables)
