"""Node functions of the stage `evaluation`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def evaluate(
    teacher: Model,
    student: Model,
    random_student: Model,
    whole_pool_student: Model,
    test_images: ImageStore,
    labeled_images: ImageStore,
    manifest: pd.DataFrame,
    random_manifest: pd.DataFrame,
    yardstick: pd.DataFrame,
    pool_scores: ShardedTable,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
    teacher_check: dict[str, Any],
    params: EvaluationParams,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the metrics of teacher, student, random student and selection, and the predictions.

    `selection.gain` is the student's accuracy minus the random student's, which learns from as many
    images in the same way; None with a `gain_reason` where it was trained differently.
    `selection.whole_pool` holds the same over the student of the whole pool, where one was trained.
    The teacher's accuracy on the labeled images is that of `teacher_check`.
    """
    from pu_kd_pipeline.evaluation import (
        compare_models,
        describe_selection,
        labeled_metrics,
        measure_students,
    )
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.reporting.findings import with_findings
    from pu_kd_pipeline.selection.whole_pool import NOT_TRAINED
    from pu_kd_pipeline.storage.manifest import CLASS_WEIGHTS
    from pu_kd_pipeline.training.recipes import SAMPLING
    from pu_kd_pipeline.verdicts import (
        OF_THE_WHOLE_POOL,
        WHOLE_POOL,
        checks_of_models,
        checks_of_selection,
        differences_to_teacher,
        gain_over,
    )

    control = "random_student"
    models = {"teacher": teacher, "student": student, control: random_student}
    students = ["student", control]
    if NOT_TRAINED not in whole_pool_student.card.origin:
        models[WHOLE_POOL] = whole_pool_student
        students.append(WHOLE_POOL)
    metrics, predictions = compare_models(models, test_images, params)
    metrics["teacher"] |= labeled_metrics(teacher_check)
    stores = {"labeled": labeled_images, "pool": pool_images}
    measure_students(metrics, models, Yardstick(yardstick, stores), params)
    selection = describe_selection(manifest, pool_scores, pool_images, class_prior)
    selection["sampling"] = student.card.origin.get(SAMPLING)
    # None: the objective of the student reads none.
    selection[CLASS_WEIGHTS] = student.card.origin.get(CLASS_WEIGHTS)
    manifests = {"student": manifest, control: random_manifest}
    selection.update(gain_over(control, models, predictions, manifests))
    if WHOLE_POOL in models:
        manifests = {"student": manifest}
        selection["whole_pool"] = gain_over(
            WHOLE_POOL, models, predictions, manifests, allowed=OF_THE_WHOLE_POOL
        )
    metrics["selection"] = selection
    metrics["difference_to_teacher"] = differences_to_teacher(predictions, students)
    metrics["n_test"] = len(test_images)
    metrics["classes"] = list(teacher.card.classes)
    metrics["checks"] = {
        **checks_of_models(models, predictions),
        **checks_of_selection(models, manifest, random_manifest, labeled_images),
    }
    return with_findings(metrics), predictions


def write_certificate(
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    labeled_features: ShardedTable,
    yardstick: pd.DataFrame,
    teacher_check: dict[str, Any],
    params: EvaluationParams,
) -> tuple[dict[str, Any], str]:
    """Return what is known of the student, and its page; test images need no labels here."""
    from pu_kd_pipeline.certificate import make_certificate
    from pu_kd_pipeline.images.yardstick import Yardstick
    from pu_kd_pipeline.reporting.certificate_page import render_certificate

    measured = Yardstick(yardstick, {"labeled": labeled_images, "pool": pool_images})
    certificate = make_certificate(
        teacher, student, test_images, measured, labeled_features, teacher_check, params
    )
    return certificate, render_certificate(certificate)
