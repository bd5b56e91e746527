"""What the stage `relatedness` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def measure_relatedness(
    pool_images: ImageStore, teacher: Model, params: RelatednessParams
) -> dict[str, Callable[[], pa.Table]]:
    """Return one maker a shard of the pool: `id`, the teacher's indicators, their calibrated sum, class, confidence."""
    from pu_kd_pipeline.selection.relatedness import relatedness_shards

    return relatedness_shards(pool_images, teacher, params)


def choose_preferential(
    relatedness: ShardedTable,
    pool_images: ImageStore,
    duplicates: pd.DataFrame,
    subset: SubsetParams,
    params: RelatednessParams,
) -> pd.DataFrame:
    """Return the manifest of all pool images that are not excluded, with their probability of being drawn."""
    from pu_kd_pipeline.images.duplicates import excluded_images
    from pu_kd_pipeline.selection.relatedness import preferential_manifest

    return preferential_manifest(
        relatedness, pool_images, params, excluded_images(duplicates, subset)
    )


def report_relatedness(
    relatedness: ShardedTable, pool_images: ImageStore, manifest: pd.DataFrame
) -> tuple[pd.DataFrame, Any]:
    """Return how well each indicator ranks the pool by the hidden truth, and a figure of that and of the sampling."""
    from pu_kd_pipeline.reporting.relatedness_figure import plot_relatedness
    from pu_kd_pipeline.selection.relatedness import indicator_auc

    auc = indicator_auc(relatedness, pool_images)
    return auc, plot_relatedness(relatedness, pool_images, manifest, auc)
