"""The order of the stage `random_baseline`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.random_baseline.nodes import (
    distill_random_student,
    draw_random_subset,
    weigh_random_classes,
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: the manifest's size, the pool and the teacher in, the random student out."""
    return Pipeline(
        [
            Node(
                draw_random_subset,
                inputs=[
                    "manifest",
                    "pool_scores",
                    "labeled_images",
                    "pool_images",
                    "class_prior",
                    "held_out_ranks",
                    "duplicates",
                    "params:subset_materialization",
                ],
                outputs="random_manifest",
                name="draw_random_subset",
                tags=["data"],
            ),
            Node(
                weigh_random_classes,
                inputs=[
                    "random_manifest",
                    "labeled_features",
                    "pool_features",
                    "teacher_model",
                    "params:class_weighting",
                ],
                outputs=["random_class_weights", "random_weight_vectors"],
                name="weigh_random_classes",
                tags=["data"],
            ),
            Node(
                distill_random_student,
                inputs=[
                    "random_manifest",
                    "labeled_images",
                    "pool_images",
                    "teacher_model",
                    "random_weight_vectors",
                    "params:distillation",
                ],
                outputs=["random_student_model", "random_distillation_history"],
                name="distill_random_student",
                tags=["gpu"],
            ),
        ],
        namespace="random_baseline",
        prefix_datasets_with_namespace=False,
    )
