"""The pipeline of the stage `subset_materialization`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.subset_materialization.nodes import materialize_subset


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: pool scores and image indices in, the manifest out."""
    return Pipeline(
        [
            Node(
                materialize_subset,
                inputs=[
                    "pool_scores",
                    "labeled_images",
                    "pool_images",
                    "class_prior",
                    "held_out_ranks",
                    "duplicates",
                    "yardstick",
                    "labeled_features",
                    "pool_features",
                    "teacher_model",
                    "params:distillation",
                    "params:subset_materialization",
                ],
                outputs="manifest",
                name="materialize_subset",
            )
        ],
        namespace="subset_materialization",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
