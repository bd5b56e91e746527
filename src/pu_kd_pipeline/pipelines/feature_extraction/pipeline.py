"""The pipeline of the stage `feature_extraction`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.feature_extraction.nodes import extract_features


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: image stores and the teacher in, features out."""
    return Pipeline(
        [
            Node(
                extract_features,
                inputs=[f"{part}_images", "teacher_model", "params:feature_extraction"],
                outputs=f"{part}_features",
                name=f"extract_{part}_features",
            )
            for part in ("labeled", "pool")
        ],
        namespace="feature_extraction",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
