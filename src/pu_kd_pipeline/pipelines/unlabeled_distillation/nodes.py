"""Node functions of the stage `unlabeled_distillation`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.params.yardstick import YardstickParams


def distill_preferential_student(
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    teacher: Model,
    yardstick: pd.DataFrame,
    params: DistillationParams,
) -> tuple[Model, pd.DataFrame]:
    """Return the student trained on preferential samples of the pool, and its history."""
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.training.distillation import distill_from_pool
    from pu_kd_pipeline.training.worker_teams import by_workers

    measured = Yardstick(yardstick, {"pool": pool_images})
    name = "unlabeled_distillation"
    train = by_workers(distill_from_pool, params.training_workers, params.compute, name)
    return train(manifest, pool_images, teacher, params, name, measured)


def distill_uniform_student(
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    teacher: Model,
    yardstick: pd.DataFrame,
    params: DistillationParams,
) -> tuple[Model, pd.DataFrame]:
    """Return the control, trained in exactly the same way on uniform samples, and its history."""
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.training.distillation import distill_from_pool
    from pu_kd_pipeline.training.worker_teams import by_workers

    uniform = manifest.assign(sampling_probability=1.0 / len(manifest))
    measured = Yardstick(yardstick, {"pool": pool_images})
    name = "uniform_baseline"
    train = by_workers(distill_from_pool, params.training_workers, params.compute, name)
    return train(uniform, pool_images, teacher, params, name, measured)


def evaluate_unlabeled(
    teacher: Model,
    student: Model,
    random_student: Model,
    test_images: ImageStore,
    pool_images: ImageStore,
    yardstick: pd.DataFrame,
    manifest: pd.DataFrame,
    params: EvaluationParams,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the metrics of teacher, student, uniform control and sampling, and the predictions.

    `selection.gain` is the student's accuracy minus the control's; None with a `gain_reason` where
    the two were trained differently.
    """
    from pu_kd_pipeline.evaluation import compare_models, measure_students
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.reporting.findings import with_findings
    from pu_kd_pipeline.verdicts import checks_of_models, differences_to_teacher, gain_over

    control = "random_student"
    models = {"teacher": teacher, "student": student, control: random_student}
    metrics, predictions = compare_models(models, test_images, params)
    measure_students(metrics, models, Yardstick(yardstick, {"pool": pool_images}), params)
    names = (
        "rule",
        "n_pool",
        "n_selected",
        "n_labeled",
        "n_excluded_pool",
        "n_yardstick_pool",
        "effective_sample_size",
    )
    facts = {name: manifest.attrs.get(name) for name in names}
    # The control learns from the same images, drawn with other probabilities.
    manifests = {"student": manifest, control: manifest}
    facts.update(gain_over(control, models, predictions, manifests))
    metrics["selection"] = facts
    metrics["difference_to_teacher"] = differences_to_teacher(predictions, ("student", control))
    metrics["n_test"] = len(test_images)
    metrics["classes"] = list(teacher.card.classes)
    metrics["checks"] = checks_of_models(models, predictions)
    return with_findings(metrics), predictions


def write_certificate(
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    pool_images: ImageStore,
    yardstick: pd.DataFrame,
    params: EvaluationParams,
) -> tuple[dict[str, Any], str]:
    """Return what is known of the student, and its page; test images need no labels here.

    The teacher is not tested on labeled images in this pipeline, so that its accuracy is known from
    test images with labels alone.
    """
    from pu_kd_pipeline.certificate import make_certificate
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.reporting.certificate_page import render_certificate

    measured = Yardstick(yardstick, {"pool": pool_images})
    certificate = make_certificate(teacher, student, test_images, measured, None, None, params)
    return certificate, render_certificate(certificate)


def plot_unlabeled_students(
    metrics: dict[str, Any],
    history: pd.DataFrame,
    uniform_history: pd.DataFrame,
    teacher: Model,
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    test_images: ImageStore,
    test_predictions: pd.DataFrame,
    certificate: dict[str, Any],
    student: Model,
    ingestion_report: dict[str, Any],
    data_ingestion: DataIngestionParams,
    teacher_block: TeacherParams,
    teacher_training: TeacherTrainingParams,
    relatedness: RelatednessParams,
    yardstick: YardstickParams,
    subset_materialization: SubsetParams,
    evaluation: EvaluationParams,
    params: DistillationParams,
) -> tuple[Any, Any, str]:
    """Return figures of both students' training and of the accuracy per class, and the page."""
    from pu_kd_pipeline.reporting.class_figures import plot_per_class_accuracy
    from pu_kd_pipeline.reporting.html import render_report
    from pu_kd_pipeline.reporting.sections.unlabeled_page import unlabeled_sections
    from pu_kd_pipeline.reporting.training_figures import plot_distillation_history

    class_names = list(teacher.card.classes)
    curves = plot_distillation_history(history, uniform_history)
    accuracies = plot_per_class_accuracy(metrics, class_names)
    blocks = {
        "data_ingestion": data_ingestion,
        "teacher": teacher_block,
        "teacher_training": teacher_training,
        "relatedness": relatedness,
        "yardstick": yardstick,
        "subset_materialization": subset_materialization,
        "unlabeled_distillation": params,
        "evaluation": evaluation,
    }
    sections = unlabeled_sections(
        metrics,
        manifest,
        pool_images,
        test_images,
        test_predictions,
        certificate,
        {"student": history, "random_student": uniform_history},
        class_names,
        student,
        blocks,
    )
    figures = {"distillation_curves": curves, "per_class_accuracy_plot": accuracies}
    facts = {str(name): value for name, value in manifest.attrs.items()}
    title = "What a student learned from the pool alone"
    page = render_report(title, metrics, ingestion_report, {}, facts, figures, blocks, sections)
    return curves, accuracies, page
