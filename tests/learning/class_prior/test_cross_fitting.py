"""Scores for class priors: cross-fitting, (TED)^n, and the loss that leaves the likely positives out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.class_prior.cross_fitting import cross_fitted_ranks
from pu_kd_pipeline.learning.class_prior.estimators import best_bin_estimate
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.pu_training import (
    ScoreTraining,
    cvir_step,
    fit_scores,
    positive_unlabeled_step,
)

TRAINING = ScoreTraining(12, 32, 100, "adam", 0.1, 0.9, 1e-3, "cosine")


class Head(nn.Module):
    """A linear score that notes what it was asked about."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 1)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(features).squeeze(1)
        return scores


def samples(
    class_prior: float, n_positive: int, n_unlabeled: int, size: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Positives, unlabeled and which of these are positive: Gaussians whose centers are 3 apart."""
    generator = torch.Generator().manual_seed(seed)
    is_positive = torch.rand(n_unlabeled, generator=generator) < class_prior
    center = torch.zeros(size)
    center[0] = 3.0
    positive = torch.randn(n_positive, size, generator=generator) + center
    unlabeled = torch.randn(
        n_unlabeled, size, generator=generator
    ) + center * is_positive.unsqueeze(1)
    return positive, unlabeled, is_positive


def ranks(
    positive: Tensor, unlabeled: Tensor, *, alternates: bool, seed: int = 0, n_folds: int = 3
):
    with seeded(seed):
        return cross_fitted_ranks(
            positive,
            unlabeled,
            lambda: Head(positive.shape[1]),
            TRAINING,
            n_folds=n_folds,
            drops_likely_positives=alternates,
            generator=torch.Generator().manual_seed(seed),
        )


@pytest.mark.parametrize("alternates", [False, True])
@pytest.mark.parametrize("class_prior", [0.2, 0.5])
def test_known_mixtures_are_recovered_from_held_out_ranks(
    class_prior: float, alternates: bool
) -> None:
    positive, unlabeled, _ = samples(class_prior, 600, 1500, 2, seed=1)
    found = ranks(positive, unlabeled, alternates=alternates)
    assert [len(part) for part in found] == [600, 1500]
    assert all(((part >= 0) & (part <= 1)).all() for part in found)
    assert best_bin_estimate(*found)[0] == pytest.approx(class_prior, abs=0.07)


def test_alternating_scores_positives_above_what_positives_hidden_in_the_unlabeled_allow() -> None:
    # against unlabeled samples of which half are positive, no score's log odds exceed log(1 / 0.5)
    positive, unlabeled, is_positive = samples(0.5, 300, 1500, 2, seed=2)
    typical = []
    for alternates in (False, True):
        heads: list[Head] = []

        def new_head(heads: list[Head] = heads) -> Head:
            heads.append(Head(2))
            return heads[-1]

        with seeded(0):
            cross_fitted_ranks(
                positive, unlabeled, new_head, TRAINING, n_folds=2, drops_likely_positives=alternates,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        with torch.no_grad():
            typical.append(
                float(torch.stack([head(unlabeled[is_positive]) for head in heads]).median())
            )
    assert typical[0] < math.log(2) + 0.3
    assert typical[1] > 2


def test_each_sample_is_scored_by_a_head_that_has_not_seen_it_and_a_seed_repeats_the_ranks() -> (
    None
):
    # memorable noise: a head that has seen a positive ranks it first, one that has not cannot
    generator = torch.Generator().manual_seed(0)
    positive, unlabeled = (torch.randn(n, 200, generator=generator) for n in (20, 200))
    first, again = (ranks(positive, unlabeled, alternates=False) for _ in range(2))
    assert 0.3 < first[0].mean() < 0.7
    for part, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(part, same)


def test_the_epochs_pass_through_the_callers_hands() -> None:
    positive, unlabeled, _ = samples(0.3, 10, 60, 2, seed=0)
    seen: list[object] = []

    def watched(epochs):
        for epoch in epochs:
            seen.append(epoch)
            yield epoch

    cross_fitted_ranks(
        positive, unlabeled, lambda: Head(2), TRAINING, n_folds=2, drops_likely_positives=True,
        generator=torch.Generator().manual_seed(0), track_epochs=watched,
    )  # fmt: skip
    assert len(seen) == TRAINING.epochs


def slow_loss(
    positive: Tensor, unlabeled: Tensor, dropped_share: float, offset: float = 0.0
) -> float:
    """Balanced logistic loss of the positives against the lowest unlabeled, one at a time."""
    kept = sorted(unlabeled.tolist())[: round((1 - dropped_share) * len(unlabeled))]
    of_positive = sum(math.log1p(math.exp(offset - score)) for score in positive.tolist()) / len(
        positive
    )
    of_kept = sum(math.log1p(math.exp(score - offset)) for score in kept) / len(kept)
    return (of_positive + of_kept) / 2


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_the_share_that_scores_highest_is_left_out_of_the_loss(share: float) -> None:
    batch = (
        torch.randn(7, generator=torch.Generator().manual_seed(0)),
        torch.arange(20.0).flip(0) / 5 - 2,
    )
    loss = positive_unlabeled_step(lambda scores: scores, lambda: share)(batch)["loss"]
    assert float(loss) == pytest.approx(slow_loss(*batch, share), rel=1e-5)
    values = cvir_step(lambda scores: scores, class_prior=share)(batch)
    assert float(values["loss"]) == pytest.approx(
        slow_loss(*batch, share, math.log(share / (1 - share))), rel=1e-5
    )
    assert float(values["risk"]) == pytest.approx(
        float(values["positive_risk"] + values["negative_risk"])
    )
    assert float(values["unlabeled_positive_share"]) == pytest.approx(0.45)


def test_what_is_left_out_gets_no_gradient_and_one_sample_is_always_left() -> None:
    unlabeled = torch.tensor([3.0, -1.0, 2.0, 0.0], requires_grad=True)
    positive_unlabeled_step(lambda scores: scores, lambda: 0.5)((torch.zeros(1), unlabeled))[
        "loss"
    ].backward()
    assert unlabeled.grad is not None
    assert (unlabeled.grad != 0).tolist() == [False, True, False, True]
    assert torch.isfinite(
        positive_unlabeled_step(lambda scores: scores, lambda: 1.0)((torch.zeros(1), unlabeled))[
            "loss"
        ]
    )


def test_cvir_finds_the_positives_and_its_sign_is_the_bayes_rule() -> None:
    positive, unlabeled, is_positive = samples(0.2, 200, 2000, 2, seed=3)
    with seeded(0):
        head = Head(2)
    for _ in fit_scores(
        head, cvir_step(head, class_prior=0.2), positive.__getitem__, unlabeled.__getitem__, n_positive=200,
        n_unlabeled=2000, training=TRAINING, generator=torch.Generator().manual_seed(0),
    ):  # fmt: skip
        pass
    with torch.no_grad():
        scores = head(unlabeled)
    assert area_under_roc(scores.numpy(), is_positive.numpy()) > 0.97
    # the best possible rule errs on 5.2 % of this mixture, balanced logits on 6.7 %
    assert ((scores > 0) == is_positive).float().mean() > 0.93
    assert float((scores > 0).float().mean()) == pytest.approx(0.2, abs=0.05)
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1, got 0"):
        cvir_step(head, class_prior=0.0)
