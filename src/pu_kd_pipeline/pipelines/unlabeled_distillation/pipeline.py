"""The pipeline of the stage `unlabeled_distillation`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.incremental.node_states import SHOWS_PARAMETERS
from pu_kd_pipeline.pipelines.unlabeled_distillation import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: pool, teacher, manifest in; students, metrics, certificate, page out."""
    inputs = [
        "preferential_manifest",
        "pool_images",
        "teacher_model",
        "unlabeled_yardstick",
        "params:unlabeled_distillation",
    ]
    return Pipeline(
        [
            Node(
                nodes.distill_preferential_student,
                inputs=inputs,
                outputs=["student_model", "distillation_history"],
                name="distill_preferential_student",
                tags=["gpu"],
            ),
            Node(
                nodes.distill_uniform_student,
                inputs=inputs,
                outputs=["random_student_model", "random_distillation_history"],
                name="distill_uniform_student",
                tags=["gpu"],
            ),
            Node(
                nodes.evaluate_unlabeled,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "random_student_model",
                    "test_images",
                    "pool_images",
                    "unlabeled_yardstick",
                    "preferential_manifest",
                    "params:evaluation",
                ],
                outputs=["metrics", "test_predictions"],
                name="evaluate_unlabeled",
                tags=["gpu"],
            ),
            Node(
                nodes.write_certificate,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "test_images",
                    "pool_images",
                    "unlabeled_yardstick",
                    "params:evaluation",
                ],
                outputs=["certificate", "certificate_page"],
                name="write_certificate",
                tags=["gpu"],
            ),
            Node(
                nodes.plot_unlabeled_students,
                inputs=[
                    "metrics",
                    "distillation_history",
                    "random_distillation_history",
                    "teacher_model",
                    "preferential_manifest",
                    "pool_images",
                    "test_images",
                    "test_predictions",
                    "certificate",
                    "student_model",
                    "ingestion_report",
                    "params:data_ingestion",
                    "params:teacher",
                    "params:teacher_training",
                    "params:relatedness",
                    "params:yardstick",
                    "params:subset_materialization",
                    "params:evaluation",
                    "params:unlabeled_distillation",
                ],
                outputs=["distillation_curves", "per_class_accuracy_plot", "report"],
                name="plot_unlabeled_students",
                tags=["report", SHOWS_PARAMETERS],
            ),
        ],
        namespace="unlabeled_distillation",
        prefix_datasets_with_namespace=False,
    )
