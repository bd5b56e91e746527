"""Node functions of the stage `distillation`."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams


def make_distill_student(stage: str) -> Callable[..., tuple[Model, pd.DataFrame]]:
    """Return the node function of a stage that distills; its metrics are named after the stage."""

    def distill_student(
        manifest: pd.DataFrame,
        labeled_images: ImageStore,
        pool_images: ImageStore,
        teacher: Model,
        weight_vectors: pd.DataFrame,
        yardstick: pd.DataFrame,
        params: DistillationParams,
    ) -> tuple[Model, pd.DataFrame]:
        """Return the student and the history of its training."""
        from pu_kd_pipeline.images.yardstick import Yardstick
        from pu_kd_pipeline.training.distillation import distill
        from pu_kd_pipeline.training.worker_teams import by_workers

        stores = {"labeled": labeled_images, "pool": pool_images}
        train = by_workers(distill, params.training_workers, params.compute, stage)
        return train(
            manifest,
            labeled_images,
            pool_images,
            teacher,
            weight_vectors,
            params,
            name=stage,
            yardstick=Yardstick(yardstick, stores),
        )

    return distill_student
