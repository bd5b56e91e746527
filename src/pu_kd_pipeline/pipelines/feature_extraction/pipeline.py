"""The pipeline of the stage `feature_extraction`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.feature_extraction import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: image stores and teacher in; features, its test and the yardstick out."""
    parameters = "params:feature_extraction"
    return Pipeline(
        [
            Node(
                nodes.extract_features,
                inputs=["labeled_images", "teacher_model", parameters, "params:engine"],
                outputs="labeled_features",
                name="extract_labeled_features",
            ),
            Node(
                nodes.measure_teacher,
                inputs=[
                    "labeled_features",
                    "labeled_images",
                    "teacher_model",
                    "params:teacher",
                    "params:teacher_check",
                ],
                outputs="teacher_check",
                name="measure_teacher",
            ),
            Node(
                nodes.extract_pool_features,
                inputs=[
                    "pool_images",
                    "teacher_model",
                    parameters,
                    "params:engine",
                    "teacher_check",
                ],
                outputs="pool_features",
                name="extract_pool_features",
            ),
            Node(
                nodes.choose_yardstick,
                inputs=[
                    "labeled_images",
                    "pool_images",
                    "labeled_features",
                    "pool_features",
                    "teacher_model",
                    "duplicates",
                    "params:yardstick",
                ],
                outputs="yardstick",
                name="choose_yardstick",
            ),
        ],
        namespace="feature_extraction",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
