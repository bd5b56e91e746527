"""What the stage `subset_materialization` does."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.model_files import Model
from pu_kd_pipeline.infra.sharded_table import ShardedTable
from pu_kd_pipeline.params import DistillationParams, SubsetParams


def materialise_subset(
    pool_scores: ShardedTable,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
    held_out_ranks: pd.DataFrame,
    duplicates: pd.DataFrame,
    pool_features: ShardedTable,
    teacher: Model,
    distillation: DistillationParams,
    params: SubsetParams,
) -> pd.DataFrame:
    """Return the manifest: the labeled images and the pool images that the selection rule keeps.

    Copies of test images are in neither, unless `exclude_test_duplicates` is off.
    Features, teacher and the student's parameters are for the rule `disagreement`, which distils a proxy.
    """
    from pu_kd_pipeline.infra.duplicates import excluded_images
    from pu_kd_pipeline.infra.proxy import Proxy
    from pu_kd_pipeline.infra.subsets import SubsetInputs, choose_subset

    proxy = Proxy(teacher, pool_features, distillation)
    excluded = excluded_images(duplicates, params)
    inputs = SubsetInputs(pool_scores, labeled_images, pool_images, class_prior, held_out_ranks, proxy, excluded)
    return choose_subset(inputs, params)
