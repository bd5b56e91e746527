"""The pipeline of the stage `relatedness`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.relatedness.nodes import (
    choose_preferential,
    choose_unlabeled_yardstick,
    measure_relatedness,
    report_relatedness,
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: pool images and teacher in; relatedness, yardstick, manifest, plot out."""
    return Pipeline(
        [
            Node(
                measure_relatedness,
                inputs=["pool_images", "teacher_model", "params:relatedness", "params:engine"],
                outputs="relatedness",
                name="measure_relatedness",
                tags=["gpu"],
            ),
            Node(
                choose_unlabeled_yardstick,
                inputs=[
                    "relatedness",
                    "pool_images",
                    "teacher_model",
                    "duplicates",
                    "params:yardstick",
                    "params:relatedness",
                ],
                outputs="unlabeled_yardstick",
                name="choose_unlabeled_yardstick",
                tags=["gpu"],
            ),
            Node(
                choose_preferential,
                inputs=[
                    "relatedness",
                    "pool_images",
                    "duplicates",
                    "unlabeled_yardstick",
                    "params:subset_materialization",
                    "params:relatedness",
                ],
                outputs="preferential_manifest",
                name="choose_preferential",
                tags=["data"],
            ),
            Node(
                report_relatedness,
                inputs=["relatedness", "pool_images", "preferential_manifest"],
                outputs=["relatedness_auc", "relatedness_plot"],
                name="report_relatedness",
                tags=["report"],
            ),
        ],
        namespace="relatedness",
        prefix_datasets_with_namespace=False,
    )
