"""Scores for class prior estimates: cross-fitted classifiers of positives against unlabeled, and (TED)^n.

Holds what trains; what reads the scores is in `class_prior`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pu_kd_pipeline.learning.class_prior.estimate import pooled_ranks
from pu_kd_pipeline.learning.class_prior.estimators import best_bin_estimate
from pu_kd_pipeline.learning.pu_training import (
    ScoreTraining,
    fit_scores,
    folds_of,
    positive_unlabeled_step,
)

WARM_START_SHARE = 0.25  # of the epochs, in which (TED)^n drops nothing yet
LARGEST_DROPPED_SHARE = 0.95  # of the unlabeled: something must be left to learn from

Ranks = NDArray[np.float64]


def cross_fitted_ranks(
    positive: Tensor,
    unlabeled: Tensor,
    new_head: Callable[[], nn.Module],
    training: ScoreTraining,
    *,
    n_folds: int,
    alternates: bool,
    generator: torch.Generator,
    watched: Callable[[Iterator[object]], Iterable[object]] = iter,
) -> tuple[Ranks, Ranks]:
    """Return what classifiers say of the positives and the unlabeled that they have not seen, as `pooled_ranks`.

    Plain: each fold's classifier learns to tell the other folds' positives from their unlabeled.

    Alternating, (TED)^n (Garg et al. 2021, arXiv:2111.00980, Algorithm 2): after a warm start the class prior is
    estimated by BBE from the held-out scores after every epoch, and the next epoch drops that share of the unlabeled,
    the most positive ones, from the loss (CVIR). The folds learn side by side and share one estimate from all their
    held-out scores, where the paper splits off a validation set: a handful of positives is too few to split. What is
    dropped is chosen within each batch, not once an epoch over all.

    Args:
        positive: (P, F) features; P >= n_folds.
        unlabeled: (U, F) features; U >= n_folds.
        new_head: returns an untrained module that maps (N, F) features to (N,) scores, on their device.
        training: epochs, batch sizes and optimizer.
        n_folds: at least 2.
        alternates: (TED)^n instead of plain training.
        generator: fixes folds and batches; on the device of the features.
        watched: passes the epochs on, and may show them.

    Returns:
        (P,) and (U,) ranks in [0, 1], fold after fold.
    """
    folds = [folds_of(len(part), n_folds, generator) for part in (positive, unlabeled)]
    heads = [new_head() for _ in range(n_folds)]
    dropped_share = 0.0

    def epochs_of(fold: int, head: nn.Module) -> Iterator[object]:
        # rows instead of copies: the folds learn at the same time
        rows = [(of_sample != fold).nonzero().squeeze(1) for of_sample in folds]
        return fit_scores(
            head,
            positive_unlabeled_step(head, lambda: dropped_share),
            lambda drawn: positive[rows[0][drawn]],
            lambda drawn: unlabeled[rows[1][drawn]],
            n_positive=len(rows[0]),
            n_unlabeled=len(rows[1]),
            training=training,
            generator=generator,
        )

    def ranks() -> tuple[Ranks, Ranks]:
        with torch.inference_mode():
            return pooled_ranks(
                [
                    (
                        head(positive[folds[0] == fold]).float().cpu().numpy(),
                        head(unlabeled[folds[1] == fold]).float().cpu().numpy(),
                    )
                    for fold, head in enumerate(heads)
                ]
            )

    side_by_side = zip(*(epochs_of(fold, head) for fold, head in enumerate(heads)), strict=True)
    for epoch, _ in enumerate(watched(side_by_side), start=1):
        if alternates and epoch >= WARM_START_SHARE * training.epochs:
            dropped_share = min(best_bin_estimate(*ranks())[0], LARGEST_DROPPED_SHARE)
    return ranks()
