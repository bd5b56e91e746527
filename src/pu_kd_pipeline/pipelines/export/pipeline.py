"""The pipeline of the stage `export`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.export.nodes import export_student


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: student, certificate and test images in; files and a report out."""
    return Pipeline(
        [
            Node(
                export_student,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "test_images",
                    "certificate",
                    "manifest_to_calibrate",
                    "preferential_manifest_to_calibrate",
                    "labeled_images",
                    "pool_images",
                    "teacher_training_images",
                    "params:export",
                ],
                outputs=["exported_student", "export_report", "export_page"],
                name="export_student",
            )
        ],
        namespace="export",
        prefix_datasets_with_namespace=False,
    )
