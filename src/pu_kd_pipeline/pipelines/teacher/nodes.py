"""What the stage `teacher` does."""

from __future__ import annotations

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams


def prepare_teacher(
    images: ImageStore, teacher: TeacherParams, training: TeacherTrainingParams
) -> tuple[Model, pd.DataFrame]:
    """Return the teacher and the history of its training, which is empty for a teacher that was brought."""
    from pu_kd_pipeline.models.factory import new_teacher
    from pu_kd_pipeline.training.teacher import train_classifier

    if teacher.weights is not None:
        return new_teacher(teacher), pd.DataFrame(
            {"update": pd.Series(dtype=float), "loss": pd.Series(dtype=float)}
        )
    if not len(images):
        raise InputError(
            "teacher: there are neither weights nor training images. Set teacher.weights (parameters_teacher.yml), "
            "or give data_ingestion.teacher_training a source"
        )
    return train_classifier(teacher, images, training)
