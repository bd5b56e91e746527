"""The pipeline `critic_distillation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.incremental.node_states import SHOWS_PARAMETERS
from pu_kd_pipeline.pipelines.critic_distillation import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: original images, teacher in; students, metrics, certificate, page out."""
    return Pipeline(
        [
            Node(
                nodes.choose_original_yardstick,
                inputs=[
                    "teacher_training_images",
                    "teacher_model",
                    "duplicates",
                    "params:yardstick",
                    "params:critic_distillation",
                ],
                outputs="original_yardstick",
                name="choose_original_yardstick",
                tags=["gpu"],
            ),
            _distillation(nodes.distill_with_critic, ["student_model", "distillation_history"]),
            _distillation(
                nodes.distill_without_critic, ["student_without_critic", "history_without_critic"]
            ),
            Node(
                nodes.evaluate_critic,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "student_without_critic",
                    "test_images",
                    "teacher_training_images",
                    "original_yardstick",
                    "duplicates",
                    "params:evaluation",
                ],
                outputs=["metrics", "test_predictions"],
                name="evaluate_critic",
                tags=["gpu"],
            ),
            Node(
                nodes.write_certificate,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "test_images",
                    "teacher_training_images",
                    "original_yardstick",
                    "params:evaluation",
                ],
                outputs=["certificate", "certificate_page"],
                name="write_certificate",
                tags=["gpu"],
            ),
            Node(
                nodes.plot_critic,
                inputs=[
                    "metrics",
                    "distillation_history",
                    "history_without_critic",
                    "teacher_model",
                    "student_model",
                    "test_images",
                    "teacher_training_images",
                    "test_predictions",
                    "certificate",
                    "ingestion_report",
                    "params:data_ingestion",
                    "params:teacher",
                    "params:teacher_training",
                    "params:yardstick",
                    "params:evaluation",
                    "params:critic_distillation",
                ],
                outputs=["critic_curves", "per_class_accuracy_plot", "report"],
                name="plot_critic",
                tags=["report", SHOWS_PARAMETERS],
            ),
        ],
        namespace="critic_distillation",
        prefix_datasets_with_namespace=False,
    )


def _distillation(function: Callable[..., Any], outputs: list[str]) -> Node:
    """Return a node of one student; both students read the same, so that they can be compared."""
    return Node(
        function,
        inputs=[
            "teacher_training_images",
            "teacher_model",
            "original_yardstick",
            "params:critic_distillation",
        ],
        outputs=outputs,
        name=function.__name__,
        tags=["gpu"],
    )
