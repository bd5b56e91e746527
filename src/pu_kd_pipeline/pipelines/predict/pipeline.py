"""The pipeline of the stage `predict`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.predict.nodes import predict_images


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: the student and image files in, a table of predictions out."""
    return Pipeline(
        [
            Node(
                predict_images,
                inputs=["student_model", "exported_student_to_predict", "params:predict"],
                outputs="predictions",
                name="predict_images",
                tags=["gpu"],
            )
        ],
        namespace="predict",
        prefix_datasets_with_namespace=False,
    )
