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
    test_images: ImageStore,
    manifest: pd.DataFrame,
    pool_scores: ShardedTable,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
    teacher_check: dict[str, Any],
    params: EvaluationParams,
) -> dict[str, Any]:
    """Return the metrics of teacher, student and random student, and of the selection.

    `selection.gain` is the student's accuracy minus the random student's, which learns from as many
    images. The teacher's accuracy on the labeled images is that of `teacher_check`.
    """
    from pu_kd_pipeline.evaluation import compare_models, describe_selection, labeled_metrics

    models = {"teacher": teacher, "student": student, "random_student": random_student}
    metrics = compare_models(models, test_images, params)
    metrics["teacher"] |= labeled_metrics(teacher_check)
    selection = describe_selection(manifest, pool_scores, pool_images, class_prior)
    gain = metrics["student"]["accuracy"] - metrics["random_student"]["accuracy"]
    return {
        **metrics,
        "selection": {**selection, "gain": gain},
        "n_test": len(test_images),
        "classes": list(teacher.card.classes),
    }
