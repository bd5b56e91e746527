"""The pipeline `critic_distillation`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.critic_distillation import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: original images and teacher in; two students, metrics and figures out."""
    inputs = ["teacher_training_images", "teacher_model", "params:critic_distillation"]
    return Pipeline(
        [
            Node(
                nodes.distill_with_critic,
                inputs=inputs,
                outputs=["student_model", "distillation_history"],
                name="distill_with_critic",
                tags=["gpu"],
            ),
            Node(
                nodes.distill_without_critic,
                inputs=inputs,
                outputs=["student_without_critic", "history_without_critic"],
                name="distill_without_critic",
                tags=["gpu"],
            ),
            Node(
                nodes.evaluate_critic,
                inputs=[
                    "teacher_model",
                    "student_model",
                    "student_without_critic",
                    "test_images",
                    "duplicates",
                    "params:evaluation",
                ],
                outputs="metrics",
                name="evaluate_critic",
                tags=["gpu"],
            ),
            Node(
                nodes.plot_critic,
                inputs=["metrics", "distillation_history", "teacher_model"],
                outputs=["critic_curves", "per_class_accuracy_plot"],
                name="plot_critic",
                tags=["report"],
            ),
        ],
        namespace="critic_distillation",
        prefix_datasets_with_namespace=False,
    )
