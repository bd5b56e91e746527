"""The pipeline of the stage `comparison`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.incremental.node_states import SHOWS_PARAMETERS
from pu_kd_pipeline.pipelines.comparison.nodes import (
    compare_students,
    report_comparison,
    write_comparison_page,
)

# What the variants of a comparison override.
_BLOCKS = (
    "params:pu_training",
    "params:subset_materialization",
    "params:class_weighting",
    "params:distillation",
    "params:relatedness",
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: teacher, features, images in; results, table, plot and page out."""
    return Pipeline(
        [
            Node(
                compare_students,
                inputs=[
                    "teacher_model",
                    "labeled_images",
                    "pool_images",
                    "test_images",
                    "teacher_training_images",
                    "labeled_features",
                    "pool_features",
                    "duplicates",
                    "yardstick",
                    "pool_audit",
                    *_BLOCKS,
                    "params:comparison",
                    "params:engine",
                ],
                outputs="comparison_cells",
                name="compare_students",
                tags=["gpu"],
            ),
            Node(
                report_comparison,
                inputs=["comparison_cells", *_BLOCKS, "params:comparison"],
                outputs=["comparison_results", "comparison_table", "comparison_plot"],
                name="report_comparison",
                tags=["report"],
            ),
            Node(
                write_comparison_page,
                inputs=[
                    "comparison_cells",
                    "teacher_model",
                    "labeled_images",
                    "pool_images",
                    "test_images",
                    "params:data_ingestion",
                    "params:teacher",
                    "params:teacher_check",
                    "params:teacher_training",
                    "params:feature_extraction",
                    "params:yardstick",
                    *_BLOCKS,
                    "params:comparison",
                ],
                outputs="comparison_page",
                name="write_comparison_page",
                tags=["report", SHOWS_PARAMETERS],
            ),
        ],
        namespace="comparison",
        prefix_datasets_with_namespace=False,
    )
