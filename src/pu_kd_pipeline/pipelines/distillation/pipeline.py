"""The order of the stage `distillation`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.distillation.nodes import distill_student


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: manifest, images, teacher and weight vectors in, the student out."""
    return Pipeline(
        [
            Node(
                distill_student,
                inputs=[
                    "manifest",
                    "labeled_images",
                    "pool_images",
                    "teacher_model",
                    "weight_vectors",
                    "params:distillation",
                ],
                outputs=["student_model", "distillation_history"],
                name="distill_student",
            )
        ],
        namespace="distillation",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
