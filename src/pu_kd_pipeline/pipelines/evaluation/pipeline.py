"""The pipeline of the stage `evaluation`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.evaluation.nodes import evaluate, write_certificate


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: models, test images and the selection in; metrics, certificate out."""
    return Pipeline(
        [
            Node(
                evaluate,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "random_student_model",
                    "whole_pool_student_model",
                    "test_images",
                    "labeled_images",
                    "manifest",
                    "random_manifest",
                    "yardstick",
                    "pool_scores",
                    "pool_images",
                    "class_prior",
                    "teacher_check",
                    "params:evaluation",
                ],
                outputs=["metrics", "test_predictions"],
                name="evaluate",
            ),
            Node(
                write_certificate,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "test_images",
                    "labeled_images",
                    "pool_images",
                    "labeled_features",
                    "yardstick",
                    "teacher_check",
                    "params:evaluation",
                ],
                outputs=["certificate", "certificate_page"],
                name="write_certificate",
            ),
        ],
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
