"""Node functions of the stage `random_baseline`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.random_baseline import RandomBaselineParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def draw_random_subset(
    manifest: pd.DataFrame,
    pool_scores: ShardedTable,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
    held_out_ranks: pd.DataFrame,
    duplicates: pd.DataFrame,
    yardstick: pd.DataFrame,
    params: SubsetParams,
) -> pd.DataFrame:
    """Return a manifest with the same labeled images and as many pool images, drawn at random."""
    from pu_kd_pipeline.images.duplicates import excluded_images
    from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset

    excluded = excluded_images(duplicates, params, yardstick)
    inputs = SubsetInputs(
        pool_scores, labeled_images, pool_images, class_prior, held_out_ranks, excluded=excluded
    )
    return choose_random_subset(inputs, manifest, params)


def distill_whole_pool_student(
    manifest: pd.DataFrame,
    pool_scores: ShardedTable,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
    held_out_ranks: pd.DataFrame,
    duplicates: pd.DataFrame,
    yardstick: pd.DataFrame,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    teacher: Model,
    subset: SubsetParams,
    weighting: ClassWeightingParams,
    distillation: DistillationParams,
    params: RandomBaselineParams,
) -> tuple[Model, pd.DataFrame]:
    """Return the student of the whole pool and its history.

    Without `random_baseline.whole_pool`, a network that was not trained, whose card says so.
    """
    from pu_kd_pipeline.images.duplicates import excluded_images
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.selection.manifest import SubsetInputs
    from pu_kd_pipeline.selection.whole_pool import distill_whole_pool, untrained_control

    if not params.whole_pool:
        return untrained_control(teacher, distillation)
    excluded = excluded_images(duplicates, subset, yardstick)
    inputs = SubsetInputs(
        pool_scores, labeled_images, pool_images, class_prior, held_out_ranks, excluded=excluded
    )
    features = (labeled_features, pool_features)
    stores = {"labeled": labeled_images, "pool": pool_images}
    return distill_whole_pool(
        inputs,
        manifest,
        features,
        teacher,
        subset,
        weighting,
        distillation,
        Yardstick(yardstick, stores),
        name="whole_pool",
    )
