"""What the stage `subset_materialization` does."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.sharded_table import ShardedTable
from pu_kd_pipeline.params import SubsetParams


def materialise_subset(
    pool_scores: ShardedTable,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
    held_out_ranks: pd.DataFrame,
    params: SubsetParams,
) -> pd.DataFrame:
    """Return the manifest: all labeled images and the pool images that the selection rule keeps."""
    from pu_kd_pipeline.infra.subsets import SubsetInputs, choose_subset

    return choose_subset(SubsetInputs(pool_scores, labeled_images, pool_images, class_prior, held_out_ranks), params)
