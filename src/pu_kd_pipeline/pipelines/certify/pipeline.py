"""The pipeline of the stage `certify`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.certify.nodes import certify_student


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: the certificate and limits in, the limits that it keeps out."""
    return Pipeline(
        [
            Node(
                certify_student,
                inputs=[
                    "certificate",
                    "teacher_model",
                    "student_model",
                    "test_images",
                    "params:certificate",
                ],
                outputs="certified_limits",
                name="certify_student",
            )
        ],
        namespace="certify",
        prefix_datasets_with_namespace=False,
    )
