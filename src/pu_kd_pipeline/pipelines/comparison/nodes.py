"""Node functions of the stage `comparison`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.feature_extraction import FeatureExtractionParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import (
    TeacherCheckParams,
    TeacherParams,
    TeacherTrainingParams,
)
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def compare_students(
    teacher: Model,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    test_images: ImageStore,
    teacher_training_images: ImageStore,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    duplicates: pd.DataFrame,
    yardstick: pd.DataFrame,
    audit: dict[str, Any] | None,
    pu_training: PUTrainingParams,
    subset_materialization: SubsetParams,
    class_weighting: ClassWeightingParams,
    distillation: DistillationParams,
    relatedness: RelatednessParams,
    params: ComparisonParams,
    engine: EngineParams,
) -> ShardMakers:
    """Return one function per cell of the grid; its table has one row, the student's results."""
    from pu_kd_pipeline.comparison.cells import comparison_shards
    from pu_kd_pipeline.comparison.grid import Blocks
    from pu_kd_pipeline.comparison.inputs import ComparisonInputs
    from pu_kd_pipeline.images.duplicates import excluded_images
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.training.class_prior import with_audited_prior

    images = (labeled_images, pool_images, test_images, teacher_training_images)
    excluded = excluded_images(duplicates, subset_materialization, yardstick)
    inputs = ComparisonInputs(
        teacher,
        *images,
        labeled_features,
        pool_features,
        excluded=excluded,
        yardstick=Yardstick(yardstick, {"labeled": labeled_images, "pool": pool_images}),
    )
    # The number, so that cells of another audit are other cells.
    pu_training = with_audited_prior(pu_training, audit, pool_features)
    blocks = Blocks(pu_training, subset_materialization, class_weighting, distillation, relatedness)
    return comparison_shards(inputs, blocks, params).on(engine)


def report_comparison(
    cells: ShardedTable,
    pu_training: PUTrainingParams,
    subset_materialization: SubsetParams,
    class_weighting: ClassWeightingParams,
    distillation: DistillationParams,
    relatedness: RelatednessParams,
    params: ComparisonParams,
) -> tuple[pd.DataFrame, str, Any]:
    """Return the results, one row per cell, and the same as Markdown tables and as a figure.

    Tables and figure leave out cells of another grid.
    """
    from pu_kd_pipeline.comparison.computation import RESULT
    from pu_kd_pipeline.comparison.figure import plot_comparison
    from pu_kd_pipeline.comparison.gap import measure_gaps
    from pu_kd_pipeline.comparison.grid import Blocks
    from pu_kd_pipeline.comparison.page import comparison_page
    from pu_kd_pipeline.comparison.present import present_results

    # Cells that an earlier version wrote lack the columns that were added since.
    results = cells.to_pandas().reindex(columns=RESULT.names)
    blocks = Blocks(pu_training, subset_materialization, class_weighting, distillation, relatedness)
    found = present_results(results, params, blocks)
    gaps = measure_gaps(found.results, params, blocks)
    page = comparison_page(found.results, params, gaps, found.doubts())
    return results, page, plot_comparison(found.results, params, gaps)


def write_comparison_page(
    cells: ShardedTable,
    teacher: Model,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    test_images: ImageStore,
    data_ingestion: DataIngestionParams,
    teacher_block: TeacherParams,
    teacher_check: TeacherCheckParams,
    teacher_training: TeacherTrainingParams,
    feature_extraction: FeatureExtractionParams,
    yardstick: YardstickParams,
    pu_training: PUTrainingParams,
    subset_materialization: SubsetParams,
    class_weighting: ClassWeightingParams,
    distillation: DistillationParams,
    relatedness: RelatednessParams,
    params: ComparisonParams,
) -> str:
    """Return the HTML page of the results.

    A node of its own: the results need neither the teacher nor the images.
    """
    from pu_kd_pipeline.comparison.computation import RESULT
    from pu_kd_pipeline.comparison.gap import measure_gaps
    from pu_kd_pipeline.comparison.grid import Blocks
    from pu_kd_pipeline.comparison.present import present_results
    from pu_kd_pipeline.comparison.report import POOL, TEST, render_comparison

    results = cells.to_pandas().reindex(columns=RESULT.names)
    blocks = Blocks(pu_training, subset_materialization, class_weighting, distillation, relatedness)
    stores = {
        "labeled images": labeled_images,
        POOL: pool_images,
        TEST: test_images,
    }
    parameters = {
        "data_ingestion": data_ingestion,
        "teacher": teacher_block,
        "teacher_check": teacher_check,
        "teacher_training": teacher_training,
        "feature_extraction": feature_extraction,
        "yardstick": yardstick,
        "pu_training": pu_training,
        "subset_materialization": subset_materialization,
        "class_weighting": class_weighting,
        "distillation": distillation,
        "relatedness": relatedness,
        "comparison": params,
    }
    found = present_results(results, params, blocks)
    gaps = measure_gaps(found.results, params, blocks)
    return render_comparison(found, params, blocks, gaps, teacher, stores, parameters)
