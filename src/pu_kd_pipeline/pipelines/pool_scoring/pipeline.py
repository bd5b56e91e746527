"""The pipeline of the stage `pool_scoring`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.pool_scoring.nodes import score_pool


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: pool features and PU classifier in, pool scores out."""
    return Pipeline(
        [
            Node(
                score_pool,
                inputs=[
                    "pool_features",
                    "pool_images",
                    "pu_classifier",
                    "params:pool_scoring",
                    "params:engine",
                ],
                outputs="pool_scores",
                name="score_pool",
            )
        ],
        namespace="pool_scoring",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
