"""Node functions of the stage `pu_training`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model, PUClassifier
from pu_kd_pipeline.params.pu_training import AUDIT, PUTrainingParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def find_class_prior(
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    audit: dict[str, Any] | None,
    params: PUTrainingParams,
) -> dict[str, Any]:
    """Return the class prior with its interval: given, audited, or estimated from scores."""
    from pu_kd_pipeline.training.class_prior import audited_prior, estimate_prior, given_prior

    if params.class_prior == AUDIT:
        return audited_prior(audit, labeled_features, pool_features)
    if isinstance(params.class_prior, float):
        return given_prior(params.class_prior, labeled_features, pool_features)
    return estimate_prior(labeled_features, pool_features, params)


def train_pu_classifier(
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    teacher: Model,
    class_prior: dict[str, Any],
    params: PUTrainingParams,
) -> tuple[PUClassifier, pd.DataFrame, pd.DataFrame]:
    """Return the PU classifier, its history (one row per epoch), and the held-out ranks.

    The rank of a labeled image is the share of the pool that scores at least as high, by a
    classifier that was trained without that image.
    """
    from pu_kd_pipeline.training.pu_classifier import (
        check_pool_divides,
        train_end_to_end,
        train_head,
    )
    from pu_kd_pipeline.training.worker_teams import by_workers

    if params.backbone == "frozen":
        return train_head(labeled_features, pool_features, teacher, class_prior["value"], params)
    check_pool_divides(params, len(pool_images), params.training_workers.n)
    # A head alone takes seconds: only backbones are trained by several processes.
    train = by_workers(train_end_to_end, params.training_workers, params.compute, "pu_training")
    return train(labeled_images, pool_images, teacher, class_prior["value"], params)
