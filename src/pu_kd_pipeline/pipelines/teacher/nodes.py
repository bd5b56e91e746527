"""Node functions of the stage `teacher`."""

from __future__ import annotations

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams


def prepare_teacher(
    images: ImageStore, teacher: TeacherParams, training: TeacherTrainingParams
) -> tuple[Model, pd.DataFrame]:
    """Return the teacher and its training history, which is empty for a user's own weights."""
    from pu_kd_pipeline.models.factory import new_teacher
    from pu_kd_pipeline.training.teacher import train_classifier
    from pu_kd_pipeline.training.worker_teams import by_workers

    if teacher.weights is not None:
        # The columns that every history has, so that readers need no special case.
        no_numbers = pd.Series(dtype=float)
        return new_teacher(teacher), pd.DataFrame({"update": no_numbers, "loss": no_numbers})
    if not len(images):
        raise InputError(
            "teacher: there are neither weights nor training images. "
            "Set teacher.weights (parameters_teacher.yml), "
            "or give data_ingestion.teacher_training a source"
        )
    train = by_workers(train_classifier, training.training_workers, training.compute, "teacher")
    return train(teacher, images, training)
