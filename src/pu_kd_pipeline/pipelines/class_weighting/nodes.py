"""Node functions of the stage `class_weighting`."""

from __future__ import annotations

import pandas as pd

from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def weigh_subset_classes(
    manifest: pd.DataFrame,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    teacher: Model,
    params: ClassWeightingParams,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the class weights by `class_weighting.mode`, and the set W of perturbed ones."""
    from pu_kd_pipeline.selection.class_weights import compute_class_weights

    return compute_class_weights(
        manifest, labeled_features, pool_features, teacher.card.classes, params
    )
