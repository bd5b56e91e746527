"""The pipeline of the stage `teacher`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.teacher.nodes import prepare_teacher


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: training images and parameters in, the teacher out."""
    return Pipeline(
        [
            Node(
                prepare_teacher,
                inputs=["teacher_training_images", "params:teacher", "params:teacher_training"],
                outputs=["teacher_model", "teacher_history"],
                name="prepare_teacher",
            )
        ],
        namespace="teacher",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
