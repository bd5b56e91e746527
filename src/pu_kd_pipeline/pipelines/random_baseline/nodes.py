"""Node functions of the stage `random_baseline`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
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
