"""The pipeline of the stage `distillation`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.distillation.nodes import make_distill_student


def create_pipeline(stage: str = "distillation", **_: Any) -> Pipeline:
    """Return the stage: manifest, images, teacher and weight vectors in, the student out.

    Args:
        stage: namespace of the nodes and prefix of their metrics; a control that reuses this
            stage has a name of its own.
    """
    return Pipeline(
        [
            Node(
                make_distill_student(stage),
                inputs=[
                    "manifest",
                    "labeled_images",
                    "pool_images",
                    "teacher_model",
                    "weight_vectors",
                    "yardstick",
                    "params:distillation",
                ],
                outputs=["student_model", "distillation_history"],
                name="distill_student",
            )
        ],
        namespace=stage,
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
