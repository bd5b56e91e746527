"""Steps that the class prior and the PU classifier share."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.pu_classifier import PUHead, make_head, n_teacher_outputs
from pu_kd_pipeline.learning.pu_training import ScoreTraining
from pu_kd_pipeline.params.pu_training import PUTrainingParams


def usable_folds(n_folds: int, n_positive: int, key: str) -> int:
    """Return the number of folds, at most one per positive.

    Raises:
        InputError: there are fewer than two positives; names the key.
    """
    # With one positive, the classifier without its fold would have none to learn from.
    if n_positive < 2:
        raise InputError(
            f"{key}: {n_positive} labeled images cannot be cross-fitted; label at least two, "
            "or set class_prior"
        )
    return min(n_folds, n_positive)


def unlabeled_rows(n_pool: int, params: PUTrainingParams) -> np.ndarray:
    """Return the rows of the pool that are trained on: all, or a random sample of a large pool.

    Every risk and class prior is a mean over unlabeled images, which that of a sample estimates
    without bias.

    Returns:
        (n,) ascending int64, n at most `max_unlabeled`.
    """
    if n_pool <= params.max_unlabeled:
        return np.arange(n_pool, dtype=np.int64)
    rng = np.random.default_rng(params.seed)
    rows = rng.choice(n_pool, size=params.max_unlabeled, replace=False, shuffle=False)
    return np.sort(rows)


def new_head(positive: Tensor, unlabeled: Tensor, params: PUTrainingParams) -> PUHead:
    """Return an untrained head for (N, D) features, standardized by those of the pool."""
    descriptor_size = positive.shape[1] - n_teacher_outputs(params.features)
    head = make_head(descriptor_size, params.features, params.attention_reduction)
    # By the pool, not by the positives: see docs/decisions/0003.
    head.set_standardization(unlabeled.cpu())
    return head


def score_training(params: PUTrainingParams, epochs: int) -> ScoreTraining:
    return ScoreTraining(
        epochs=epochs,
        positive_batch_size=params.positive_batch_size,
        unlabeled_batch_size=params.unlabeled_batch_size,
        **params.optimizer.model_dump(),
    )
