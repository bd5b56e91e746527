"""The images that the student of a cell learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pu_kd_pipeline.comparison.grid import Cell
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.pool_scores import ScoredPool
from pu_kd_pipeline.evaluation import describe_selection
from pu_kd_pipeline.params.comparison import METHODS
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
from pu_kd_pipeline.selection.proxy import Proxy
from pu_kd_pipeline.selection.relatedness import preferential_manifest, relatedness_shards
from pu_kd_pipeline.storage.sharded_table import InMemoryTable
from pu_kd_pipeline.training.shared_logits import SharedTeacherLogits

SELECTION_COLUMNS = ("auc", "precision", "recall", "class_prior", "true_class_prior")


def n_pool_images(manifest: pd.DataFrame) -> int:
    """Return how many images of a manifest come from the pool."""
    is_of_pool = manifest["origin"] == "pool"
    return int(is_of_pool.sum())


def selected_manifest(
    inputs: ComparisonInputs,
    cell: Cell,
    pool: ScoredPool,
    budget: int | None,
    shared_logits: SharedTeacherLogits,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the manifest of a cell that selects, and the quality of the selection.

    Args:
        inputs: what all cells share.
        cell: its method selects.
        pool: the scores that the cell's rule reads.
        budget: replaces the budget of the cell's parameters; None: theirs.
        shared_logits: the teacher's, which cells share.

    Returns:
        The manifest, and `SELECTION_COLUMNS`: None where the truth is not known.

    Raises:
        InputError: the rule cannot select from this pool.
    """
    assert cell.rule is not None
    params = cell.blocks.subset_materialization
    if budget is not None:
        params = params.model_copy(update={"budget": budget})
    student = cell.blocks.distillation
    proxy = Proxy(inputs.teacher, inputs.pool_features, student, shared_logits)
    subset_inputs = SubsetInputs(
        pool_scores=pool.scores,
        labeled_images=inputs.cell_labeled_images(cell),
        pool_images=inputs.pool_images,
        class_prior=pool.class_prior,
        held_out_ranks=pool.held_out_ranks,
        proxy=proxy,
        excluded=inputs.excluded,
        student=student,
        features=(inputs.labeled_features, inputs.pool_features),
    )
    manifest = choose_subset(subset_inputs, params)
    facts = describe_selection(manifest, pool.scores, inputs.pool_images, pool.class_prior)
    if params.ranked_by is None:
        facts["auc"] = None  # the scores that it measures did not decide what was kept
    quality = {name: facts.get(name) for name in SELECTION_COLUMNS}
    return manifest, quality


class UnselectedManifests:
    """The manifests of methods that select nothing; relatedness is measured once and kept."""

    def __init__(self, inputs: ComparisonInputs) -> None:
        self._inputs = inputs
        self._relatedness: dict[str, InMemoryTable] = {}

    def manifest(self, cell: Cell) -> pd.DataFrame:
        """Return all labeled or original images of a cell, or the pool with its probabilities."""
        if METHODS[cell.method].samples_by_relatedness:
            return self._by_relatedness(cell.blocks.relatedness)
        images = self._inputs.cell_labeled_images(cell)
        ids = images.index[["id"]]
        return ids.assign(origin="labeled")

    def _by_relatedness(self, params: RelatednessParams) -> pd.DataFrame:
        pool_images = self._inputs.pool_images
        # What is measured depends on these alone; sampling reads the other parameters afterwards.
        key = params.model_dump_json(include={"seed", "n_noise_images", "clip"})
        if key not in self._relatedness:
            makers = relatedness_shards(pool_images, self._inputs.teacher, params)
            names = tuple(makers)
            tables = tuple(make() for make in makers.values())
            # No folder: the table is not written.
            self._relatedness[key] = InMemoryTable(Path(), names, tables)
        relatedness = self._relatedness[key]
        excluded = self._inputs.excluded
        return preferential_manifest(relatedness, pool_images, params, excluded)
