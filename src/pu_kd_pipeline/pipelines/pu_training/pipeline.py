"""The pipeline of the stage `pu_training`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.pu_training.nodes import find_class_prior, train_pu_classifier

_FEATURES = ["labeled_features", "pool_features"]


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: features in, class prior, held-out ranks and PU classifier out."""
    return Pipeline(
        [
            Node(
                find_class_prior,
                inputs=[*_FEATURES, "pool_audit", "params:pu_training"],
                outputs="class_prior",
                name="find_class_prior",
            ),
            Node(
                train_pu_classifier,
                inputs=[
                    *_FEATURES,
                    "labeled_images",
                    "pool_images",
                    "teacher_model",
                    "class_prior",
                    "params:pu_training",
                ],
                outputs=["pu_classifier", "pu_history", "held_out_ranks"],
                name="train_pu_classifier",
            ),
        ],
        namespace="pu_training",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
