"""What the stage `distillation` does."""

from __future__ import annotations

import pandas as pd

from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.model_files import Model
from pu_kd_pipeline.params import DistillationParams


def distil_student(
    manifest: pd.DataFrame,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    teacher: Model,
    weight_vectors: pd.DataFrame,
    params: DistillationParams,
) -> tuple[Model, pd.DataFrame]:
    """Return the student and the history of its training."""
    from pu_kd_pipeline.infra.distillation import distil

    return distil(manifest, labeled_images, pool_images, teacher, weight_vectors, params, name="distillation")
