"""Node functions of the stage `subset_materialization`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def materialize_subset(
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
    distillation: DistillationParams,
    params: SubsetParams,
) -> pd.DataFrame:
    """Return the manifest: the labeled images and the pool images that the selection rule keeps.

    The yardstick is excluded from both, and copies of test images are, unless
    `exclude_test_duplicates` is off. Only the rules `disagreement`, which distills a proxy, and
    `retrieved` read features. The student's parameters are read by the proxy and by `mixture`,
    whose draws depend on their number.
    """
    from pu_kd_pipeline.images.duplicates import excluded_images
    from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
    from pu_kd_pipeline.selection.proxy import Proxy

    proxy = Proxy(teacher, pool_features, distillation)
    excluded = excluded_images(duplicates, params, yardstick)
    inputs = SubsetInputs(
        pool_scores,
        labeled_images,
        pool_images,
        class_prior,
        held_out_ranks,
        proxy,
        excluded,
        student=distillation,
        features=(labeled_features, pool_features),
    )
    return choose_subset(inputs, params)
