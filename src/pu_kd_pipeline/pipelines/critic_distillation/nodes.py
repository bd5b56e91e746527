"""Node functions of the stage `critic_distillation`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.params.yardstick import YardstickParams


def choose_original_yardstick(
    teacher_training_images: ImageStore,
    teacher: Model,
    duplicates: pd.DataFrame,
    yardstick: YardstickParams,
    params: DistillationParams,
) -> pd.DataFrame:
    """Return the images that both students are measured on, and the teacher's logits for them."""
    from pu_kd_pipeline.selection.yardstick import choose_original_yardstick

    images = teacher_training_images
    return choose_original_yardstick(images, teacher, duplicates, yardstick, params.compute)


def distill_with_critic(
    teacher_training_images: ImageStore,
    teacher: Model,
    yardstick: pd.DataFrame,
    params: DistillationParams,
) -> tuple[Model, pd.DataFrame]:
    """Return the student, and the history of its training and of its critic's."""
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.training.distillation import distill_original
    from pu_kd_pipeline.training.worker_teams import by_workers

    images = teacher_training_images
    measured = Yardstick(yardstick, {"labeled": images})
    name = "critic_distillation"
    train = by_workers(distill_original, params.training_workers, params.compute, name)
    return train(images, teacher, params, name, measured)


def distill_without_critic(
    teacher_training_images: ImageStore,
    teacher: Model,
    yardstick: pd.DataFrame,
    params: DistillationParams,
) -> tuple[Model, pd.DataFrame]:
    """Return the control, trained in exactly the same way but without a critic, and its history."""
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.training.distillation import distill_original
    from pu_kd_pipeline.training.worker_teams import by_workers

    images = teacher_training_images
    measured = Yardstick(yardstick, {"labeled": images})
    without = params.model_copy(update={"objective": "attention"})
    name = "without_critic"
    train = by_workers(distill_original, params.training_workers, params.compute, name)
    return train(images, teacher, without, name, measured)


def evaluate_critic(
    teacher: Model,
    student: Model,
    control: Model,
    test_images: ImageStore,
    teacher_training_images: ImageStore,
    yardstick: pd.DataFrame,
    duplicates: pd.DataFrame,
    params: EvaluationParams,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the metrics of teacher, student, control and critic, and the predictions.

    `critic.gain` is the student's accuracy minus the control's; None with a `gain_reason` where the
    two differ in more than the critic. `n_copies_of_test_images` counts copies among the original
    images: all three models learn from these, so copies favor all three.
    """
    from pu_kd_pipeline.evaluation import compare_models, measure_students
    from pu_kd_pipeline.images.duplicates import TEACHER_TRAINING, test_image_copies
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.reporting.findings import with_findings
    from pu_kd_pipeline.verdicts import checks_of_models, differences_to_teacher, gain_over

    name = "student_without_critic"
    models = {"teacher": teacher, "student": student, name: control}
    metrics, predictions = compare_models(models, test_images, params)
    measured = Yardstick(yardstick, {"labeled": teacher_training_images})
    measure_students(metrics, models, measured, params)
    critic = {"collapse": student.card.origin.get("critic_collapse")}
    # What the control leaves out on purpose.
    allowed = ("distillation.objective", "distillation.critic", "distilled_by")
    critic.update(gain_over(name, models, predictions, {}, allowed))
    metrics["critic"] = critic
    metrics["difference_to_teacher"] = differences_to_teacher(predictions, ("student", name))
    metrics["n_test"] = len(test_images)
    metrics["n_copies_of_test_images"] = len(test_image_copies(duplicates, TEACHER_TRAINING))
    metrics["classes"] = list(teacher.card.classes)
    metrics["checks"] = checks_of_models(models, predictions)
    return with_findings(metrics), predictions


def write_certificate(
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    teacher_training_images: ImageStore,
    yardstick: pd.DataFrame,
    params: EvaluationParams,
) -> tuple[dict[str, Any], str]:
    """Return what is known of the student, and its page; test images need no labels here.

    The teacher learned from all labeled images of this pipeline but the test images, so that its
    accuracy is known from test images with labels alone.
    """
    from pu_kd_pipeline.certificate import make_certificate
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.reporting.certificate_page import render_certificate

    measured = Yardstick(yardstick, {"labeled": teacher_training_images})
    certificate = make_certificate(
        teacher, student, test_images, measured, None, None, params, is_yardstick_learned=True
    )
    return certificate, render_certificate(certificate)


def plot_critic(
    metrics: dict[str, Any],
    history: pd.DataFrame,
    control_history: pd.DataFrame,
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    teacher_training_images: ImageStore,
    test_predictions: pd.DataFrame,
    certificate: dict[str, Any],
    ingestion_report: dict[str, Any],
    data_ingestion: DataIngestionParams,
    teacher_block: TeacherParams,
    teacher_training: TeacherTrainingParams,
    yardstick: YardstickParams,
    evaluation: EvaluationParams,
    params: DistillationParams,
) -> tuple[Any, Any, str]:
    """Return figures of the critic's training and of the accuracy per class, and the page."""
    from pu_kd_pipeline.reporting.class_figures import plot_per_class_accuracy
    from pu_kd_pipeline.reporting.html import render_report
    from pu_kd_pipeline.reporting.sections.critic_page import CONTROL, critic_sections
    from pu_kd_pipeline.reporting.training_figures import plot_critic_history

    class_names = list(teacher.card.classes)
    curves = plot_critic_history(history, metrics["critic"]["collapse"])
    accuracies = plot_per_class_accuracy(metrics, class_names)
    blocks = {
        "data_ingestion": data_ingestion,
        "teacher": teacher_block,
        "teacher_training": teacher_training,
        "yardstick": yardstick,
        "critic_distillation": params,
        "evaluation": evaluation,
    }
    sections = critic_sections(
        metrics,
        test_images,
        teacher_training_images,
        test_predictions,
        certificate,
        {"student": history, CONTROL: control_history},
        class_names,
        student,
        blocks,
    )
    figures = {"critic_curves": curves, "per_class_accuracy_plot": accuracies}
    title = "What a student learned from the original images, with a critic"
    page = render_report(
        title,
        metrics,
        ingestion_report,
        {},
        {},
        figures,
        blocks,
        sections,
        student_stores=("teacher_training",),
    )
    return curves, accuracies, page
