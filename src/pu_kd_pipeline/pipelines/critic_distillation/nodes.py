"""What the stage `critic_distillation` does."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.model_files import Model
from pu_kd_pipeline.params import DistillationParams, EvaluationParams


def distil_with_critic(
    teacher_training_images: ImageStore, teacher: Model, params: DistillationParams
) -> tuple[Model, pd.DataFrame]:
    """Return the student and the history of its training and of its critic's."""
    from pu_kd_pipeline.infra.distillation import distil_original

    return distil_original(teacher_training_images, teacher, params, name="critic_distillation")


def distil_without_critic(
    teacher_training_images: ImageStore, teacher: Model, params: DistillationParams
) -> tuple[Model, pd.DataFrame]:
    """Return the control, trained exactly as the other one but for the critic, and its history."""
    from pu_kd_pipeline.infra.distillation import distil_original

    without = params.model_copy(update={"objective": "attention"})
    return distil_original(teacher_training_images, teacher, without, name="without_critic")


def evaluate_critic(
    teacher: Model,
    student: Model,
    control: Model,
    test_images: ImageStore,
    duplicates: pd.DataFrame,
    params: EvaluationParams,
) -> dict[str, Any]:
    """Return the metrics of teacher, student, and the student without a critic, and what became of the critic.

    `n_copies_of_test_images` counts those among the original images, which all three have learned from.
    """
    from pu_kd_pipeline.infra.duplicates import TEACHER_TRAINING, copies_of_test_images
    from pu_kd_pipeline.infra.evaluation import compare_models

    models = {"teacher": teacher, "student": student, "student_without_critic": control}
    metrics = compare_models(models, test_images, params)
    gain = metrics["student"]["accuracy"] - metrics["student_without_critic"]["accuracy"]
    critic = {"gain": gain, "collapse": student.card.origin.get("critic_collapse")}
    n_copies = len(copies_of_test_images(duplicates, TEACHER_TRAINING))
    return {**metrics, "critic": critic, "n_test": len(test_images), "n_copies_of_test_images": n_copies}


def plot_critic(metrics: dict[str, Any], history: pd.DataFrame, teacher: Model) -> tuple[Any, Any]:
    """Return the figure of the critic's training, and that of the accuracy of each class."""
    from pu_kd_pipeline.infra import figures

    return (
        figures.plot_critic_history(history, metrics["critic"]["collapse"]),
        figures.plot_per_class_accuracy(metrics, list(teacher.card.classes)),
    )
