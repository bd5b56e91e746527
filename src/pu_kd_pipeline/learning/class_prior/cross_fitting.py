"""Scores for class prior estimates: cross-fitted classifiers of positives against unlabeled.

Holds the training, plain and by (TED)^n; the estimators that read the scores are in `estimators`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pu_kd_pipeline.learning.class_prior.estimate import pooled_ranks
from pu_kd_pipeline.learning.class_prior.estimators import Scores, best_bin_estimate
from pu_kd_pipeline.learning.pu_training import (
    ScoreTraining,
    assign_folds,
    fit_scores,
    positive_unlabeled_step,
)

WARM_START_SHARE = 0.25  # share of the epochs in which (TED)^n drops nothing yet
LARGEST_DROPPED_SHARE = 0.95  # of the unlabeled: some must remain to learn from

Ranks = NDArray[np.float64]


def cross_fitted_ranks(
    positive: Tensor,
    unlabeled: Tensor,
    new_head: Callable[[], nn.Module],
    training: ScoreTraining,
    *,
    n_folds: int,
    drops_likely_positives: bool,
    generator: torch.Generator,
    track_epochs: Callable[[Iterator[object]], Iterable[object]] = iter,
) -> tuple[Ranks, Ranks]:
    """Return the `pooled_ranks` of positives and unlabeled by classifiers that have not seen them.

    Plain: each fold's classifier learns to separate the other folds' positives from their
    unlabeled.

    With `drops_likely_positives`, (TED)^n (Garg et al. 2021, arXiv:2111.00980, Algorithm 2): after
    a warm start the class prior is estimated by BBE from the held-out scores after every epoch, and
    the next epoch drops that share of the unlabeled, the most positive ones, from the loss (CVIR).

    Departures: the folds are trained in parallel and share one estimate from all their held-out
    scores, where the paper splits off a validation set, for which a handful of positives is too
    few. The dropped samples are chosen within each batch, not once per epoch over all.

    Args:
        positive: (P, F) features; P >= n_folds.
        unlabeled: (U, F) features; U >= n_folds.
        new_head: returns an untrained module that maps (N, F) features to (N,) scores, on the
            device of the features.
        training: epochs, batch sizes and optimizer.
        n_folds: at least 2.
        drops_likely_positives: (TED)^n instead of plain training.
        generator: fixes folds and batches; on the device of the features.
        track_epochs: wraps the iterator over the epochs, for a progress bar.

    Returns:
        (P,) and (U,) ranks in [0, 1], fold after fold.
    """
    folds = _Folds(
        positive=positive,
        unlabeled=unlabeled,
        positive_fold=assign_folds(len(positive), n_folds, generator),
        unlabeled_fold=assign_folds(len(unlabeled), n_folds, generator),
    )
    heads = [new_head() for _ in range(n_folds)]
    dropped_share = 0.0

    def current_dropped_share() -> float:
        return dropped_share

    trainings = []
    for fold, head in enumerate(heads):
        step = positive_unlabeled_step(head, current_dropped_share)
        trainings.append(folds.train_without(fold, head, step, training, generator))

    # One epoch of every fold at a time, because all share the dropped share.
    epochs = zip(*trainings, strict=True)
    for epoch, _ in enumerate(track_epochs(epochs), start=1):
        if drops_likely_positives and epoch >= WARM_START_SHARE * training.epochs:
            class_prior, _ = best_bin_estimate(*folds.held_out_ranks(heads))
            dropped_share = min(class_prior, LARGEST_DROPPED_SHARE)
    return folds.held_out_ranks(heads)


@dataclass(frozen=True)
class _Folds:
    """The samples and the fold that each belongs to."""

    positive: Tensor
    unlabeled: Tensor
    positive_fold: Tensor
    unlabeled_fold: Tensor

    def train_without(
        self,
        fold: int,
        head: nn.Module,
        step: Callable[[tuple[Tensor, Tensor]], dict[str, Tensor]],
        training: ScoreTraining,
        generator: torch.Generator,
    ) -> Iterator[object]:
        """Train a head on all folds but one; yield once per epoch."""
        # Rows instead of copies of the features: the folds are trained at the same time. On a CPU
        # index_select is several times as fast as indexing with a tensor.
        positive_rows = (self.positive_fold != fold).nonzero().squeeze(1)
        unlabeled_rows = (self.unlabeled_fold != fold).nonzero().squeeze(1)
        return fit_scores(
            head,
            step,
            lambda drawn: self.positive.index_select(0, positive_rows[drawn]),
            lambda drawn: self.unlabeled.index_select(0, unlabeled_rows[drawn]),
            n_positive=len(positive_rows),
            n_unlabeled=len(unlabeled_rows),
            training=training,
            generator=generator,
        )

    @torch.inference_mode()
    def held_out_ranks(self, heads: list[nn.Module]) -> tuple[Ranks, Ranks]:
        """Return the ranks of each fold's samples by the head that was trained without them."""
        scores = []
        for fold, head in enumerate(heads):
            is_positive_here = self.positive_fold == fold
            is_unlabeled_here = self.unlabeled_fold == fold
            positive = self.positive[is_positive_here]
            unlabeled = self.unlabeled[is_unlabeled_here]
            positive_scores = _scores(head, positive)
            unlabeled_scores = _scores(head, unlabeled)
            scores.append((positive_scores, unlabeled_scores))
        return pooled_ranks(scores)


def _scores(head: nn.Module, features: Tensor) -> Scores:
    outputs: Tensor = head(features)
    # float32, because NumPy has no bfloat16.
    scores: Scores = outputs.float().cpu().numpy()
    return scores
