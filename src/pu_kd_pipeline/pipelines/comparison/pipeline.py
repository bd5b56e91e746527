"""The pipeline of the stage `comparison`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.comparison.nodes import compare_students, report_comparison

# What the variants of a comparison override.
_BLOCKS = (
    "params:pu_training",
    "params:subset_materialization",
    "params:class_weighting",
    "params:distillation",
    "params:relatedness",
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: teacher, features, images in; results, table and plot out."""
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
        ],
        namespace="comparison",
        prefix_datasets_with_namespace=False,
    )
