"""Cross-fitted ranks for class priors: known mixtures, held-out scores, and (TED)^n."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from pu_kd_pipeline.learning.class_prior.cross_fitting import cross_fitted_ranks
from pu_kd_pipeline.learning.class_prior.estimators import best_bin_estimate
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_training import ScoreTraining
from tests.learning.gaussians import LinearScore, samples
from tests.learning.generators import seeded_generator

TRAINING = ScoreTraining(12, 32, 100, "adam", 0.1, 0.9, 1e-3, "cosine")


def ranks(
    positive: Tensor, unlabeled: Tensor, *, drops_likely_positives: bool, n_folds: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    with seeded(0):
        return cross_fitted_ranks(
            positive,
            unlabeled,
            lambda: LinearScore(positive.shape[1]),
            TRAINING,
            n_folds=n_folds,
            drops_likely_positives=drops_likely_positives,
            generator=seeded_generator(),
        )


@pytest.mark.parametrize("drops_likely_positives", [False, True])
@pytest.mark.parametrize("class_prior", [0.2, 0.5])
def test_known_mixtures_are_recovered_from_held_out_ranks(
    class_prior: float, drops_likely_positives: bool
) -> None:
    positive, unlabeled, _ = samples(class_prior, 600, 1500, 2, seed=1)
    positive_ranks, unlabeled_ranks = ranks(
        positive, unlabeled, drops_likely_positives=drops_likely_positives
    )
    all_ranks = np.concatenate([positive_ranks, unlabeled_ranks])

    assert len(positive_ranks) == 600
    assert len(unlabeled_ranks) == 1500
    assert all_ranks.min() >= 0
    assert all_ranks.max() <= 1

    value, _ = best_bin_estimate(positive_ranks, unlabeled_ranks)
    # The standard error of the share itself is 0.013; three folds of a small network add to it.
    assert value == pytest.approx(class_prior, abs=0.07)


def median_score_of_hidden_positives(drops_likely_positives: bool) -> float:
    positive, unlabeled, is_positive = samples(0.5, 300, 1500, 2, seed=2)
    hidden_positive = unlabeled[is_positive]
    heads: list[LinearScore] = []

    def new_head() -> nn.Module:
        head = LinearScore(2)
        heads.append(head)
        return head

    with seeded(0):
        cross_fitted_ranks(
            positive,
            unlabeled,
            new_head,
            TRAINING,
            n_folds=2,
            drops_likely_positives=drops_likely_positives,
            generator=seeded_generator(),
        )
    with torch.no_grad():
        scores = torch.stack([head(hidden_positive) for head in heads])
    return float(scores.median())


def test_dropping_likely_positives_lifts_the_bound_on_the_scores_of_positives() -> None:
    median_with_all = median_score_of_hidden_positives(drops_likely_positives=False)
    median_without_likely = median_score_of_hidden_positives(drops_likely_positives=True)

    # Against unlabeled samples of which half are positive, no log-odds exceed log(1 / 0.5).
    bound = math.log(2)

    assert median_with_all < bound + 0.3
    assert median_without_likely > 2


def noise() -> tuple[Tensor, Tensor]:
    """Positives and unlabeled that only a head that has been trained on them can separate."""
    generator = seeded_generator()
    # As many dimensions as unlabeled samples, so that a linear head can memorize all.
    positive = torch.randn(20, 200, generator=generator)
    unlabeled = torch.randn(200, 200, generator=generator)
    return positive, unlabeled


def test_each_sample_is_scored_by_a_head_that_has_not_seen_it() -> None:
    positive_ranks, _ = ranks(*noise(), drops_likely_positives=False)
    # A head that has memorized a positive would rank it first.
    assert 0.3 < positive_ranks.mean() < 0.7


def test_a_seed_repeats_the_ranks() -> None:
    first_positive, first_unlabeled = ranks(*noise(), drops_likely_positives=False)
    again_positive, again_unlabeled = ranks(*noise(), drops_likely_positives=False)

    assert_array_equal(first_positive, again_positive)
    assert_array_equal(first_unlabeled, again_unlabeled)


def test_the_caller_can_track_the_epochs() -> None:
    positive, unlabeled, _ = samples(0.3, 10, 60, 2, seed=0)
    seen: list[object] = []

    def track_epochs(epochs):
        for epoch in epochs:
            seen.append(epoch)
            # A progress bar passes every epoch on, because the training iterates over it.
            yield epoch

    cross_fitted_ranks(
        positive,
        unlabeled,
        lambda: LinearScore(2),
        TRAINING,
        n_folds=2,
        drops_likely_positives=True,
        generator=seeded_generator(),
        track_epochs=track_epochs,
    )

    assert len(seen) == TRAINING.epochs
