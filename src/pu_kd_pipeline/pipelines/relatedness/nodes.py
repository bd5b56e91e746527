"""Node functions of the stage `relatedness`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def measure_relatedness(
    pool_images: ImageStore, teacher: Model, params: RelatednessParams, engine: EngineParams
) -> ShardMakers:
    """Return one function per shard of the pool that makes its table.

    The columns are `id`, the teacher's indicators, their calibrated sum, class and confidence.
    """
    from pu_kd_pipeline.selection.relatedness import relatedness_shards

    return relatedness_shards(pool_images, teacher, params).on(engine)


def choose_unlabeled_yardstick(
    relatedness: ShardedTable,
    pool_images: ImageStore,
    teacher: Model,
    duplicates: pd.DataFrame,
    yardstick: YardstickParams,
    params: RelatednessParams,
) -> pd.DataFrame:
    """Return the images that every student is measured on, and the teacher's logits for them."""
    from pu_kd_pipeline.selection.yardstick import choose_unlabeled_yardstick

    compute = params.compute
    return choose_unlabeled_yardstick(
        relatedness, pool_images, teacher, duplicates, yardstick, compute
    )


def choose_preferential(
    relatedness: ShardedTable,
    pool_images: ImageStore,
    duplicates: pd.DataFrame,
    yardstick: pd.DataFrame,
    subset: SubsetParams,
    params: RelatednessParams,
) -> pd.DataFrame:
    """Return the manifest of all pool images that are not excluded, with sampling probabilities."""
    from pu_kd_pipeline.images.duplicates import excluded_images
    from pu_kd_pipeline.selection.relatedness import preferential_manifest

    excluded = excluded_images(duplicates, subset, yardstick)
    return preferential_manifest(relatedness, pool_images, params, excluded)


def report_relatedness(
    relatedness: ShardedTable, pool_images: ImageStore, manifest: pd.DataFrame
) -> tuple[pd.DataFrame, Any]:
    """Return the AUC of each indicator against the hidden truth, and a figure with the sampling."""
    from pu_kd_pipeline.reporting.relatedness_figure import plot_relatedness
    from pu_kd_pipeline.selection.relatedness import indicator_auc

    auc = indicator_auc(relatedness, pool_images)
    return auc, plot_relatedness(relatedness, pool_images, manifest, auc)
