"""Steps and batches of PU training: nnPU, uPU, CVIR, and positives against unlabeled."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.pu_training import (
    ScoreTraining,
    cvir_step,
    fit_scores,
    folds_of,
    positive_unlabeled_step,
    pu_step,
)
from tests.learning.gaussians import LinearScore, samples

PRIOR = 0.4
TRAINING = ScoreTraining(20, 32, 100, "adam", 0.01, 0.9, 0.0, "constant")


def _identity(scores):
    return scores


def _linear_score(n_features=2):
    with seeded(0):
        return LinearScore(n_features)


def _fit(module, step, positive, unlabeled, training=TRAINING):
    records = fit_scores(
        module,
        step,
        positive.__getitem__,
        unlabeled.__getitem__,
        n_positive=len(positive),
        n_unlabeled=len(unlabeled),
        training=training,
        generator=torch.Generator().manual_seed(1),
    )
    return list(records)


def _scores(module, features):
    with torch.no_grad():
        return module(features)


def test_nnpu_finds_the_positives_among_the_unlabeled():
    positive, unlabeled, is_positive = samples(PRIOR, 100, 1000, 2, distance=3.5, seed=0)
    score = _linear_score()
    step = pu_step(score, class_prior=PRIOR, estimator="nnpu", beta=0.0, gamma=1.0)
    records = _fit(score, step, positive, unlabeled)
    assert [record["epoch"] for record in records] == list(range(1, TRAINING.epochs + 1))
    is_correct = (_scores(score, unlabeled) > 0) == is_positive
    assert is_correct.float().mean() > 0.93


def _last_record_of_an_overfitting_network(estimator):
    positive, unlabeled, _ = samples(PRIOR, 20, 400, 50, distance=1.4, seed=0)
    # 20 positives in 50 dimensions can be separated from any unlabeled samples.
    training = ScoreTraining(300, 20, 400, "adam", 0.01, 0.9, 0.0, "constant")
    with seeded(0):
        network = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 1), nn.Flatten(0))
    step = pu_step(network, class_prior=PRIOR, estimator=estimator, beta=0.0, gamma=1.0)
    return _fit(network, step, positive, unlabeled, training)[-1]


def test_upu_overfits_below_zero_where_nnpu_does_not():
    upu = _last_record_of_an_overfitting_network("upu")
    assert upu["risk"] < -0.1
    assert upu["ascent_share"] == 0
    nnpu = _last_record_of_an_overfitting_network("nnpu")
    assert nnpu["risk"] >= 0
    assert nnpu["negative_risk"] > -0.1


def test_positive_against_unlabeled_ranks_positives_first():
    positive, unlabeled, is_positive = samples(PRIOR, 100, 1000, 2, distance=3.5, seed=0)
    score = _linear_score()
    _fit(score, positive_unlabeled_step(score), positive, unlabeled)
    scores = _scores(score, unlabeled)
    assert area_under_roc(scores.numpy(), is_positive.numpy()) > 0.97


def test_cvir_finds_the_positives_and_its_sign_is_the_bayes_rule():
    positive, unlabeled, is_positive = samples(0.2, 200, 2000, 2, seed=3)
    training = ScoreTraining(12, 32, 100, "adam", 0.1, 0.9, 1e-3, "cosine")
    score = _linear_score()
    _fit(score, cvir_step(score, class_prior=0.2), positive, unlabeled, training)
    scores = _scores(score, unlabeled)
    assert area_under_roc(scores.numpy(), is_positive.numpy()) > 0.97
    # The best possible rule errs on 5.2 % of this mixture, balanced logits on 6.7 %.
    assert ((scores > 0) == is_positive).float().mean() > 0.93
    assert float((scores > 0).float().mean()) == pytest.approx(0.2, abs=0.05)


def test_cvir_refuses_a_class_prior_outside_of_the_open_interval():
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1, got 0"):
        cvir_step(_identity, class_prior=0.0)


def slow_loss(
    positive: Tensor, unlabeled: Tensor, dropped_share: float, offset: float = 0.0
) -> float:
    """Balanced logistic loss of the positives against the lowest unlabeled, one at a time."""
    n_kept = round((1 - dropped_share) * len(unlabeled))
    # The highest scores are the likely positives, which are dropped.
    kept = sorted(unlabeled.tolist())[:n_kept]
    positive_losses = [math.log1p(math.exp(offset - score)) for score in positive.tolist()]
    kept_losses = [math.log1p(math.exp(score - offset)) for score in kept]
    positive_loss = sum(positive_losses) / len(positive_losses)
    kept_loss = sum(kept_losses) / len(kept_losses)
    return (positive_loss + kept_loss) / 2


def _batch() -> tuple[Tensor, Tensor]:
    positive = torch.randn(7, generator=torch.Generator().manual_seed(0))
    unlabeled = torch.arange(20.0).flip(0) / 5 - 2
    return positive, unlabeled


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_the_share_that_scores_highest_is_left_out_of_the_loss(share):
    loss = positive_unlabeled_step(_identity, lambda: share)(_batch())["loss"]
    assert float(loss) == pytest.approx(slow_loss(*_batch(), share), rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_cvir_ignores_the_share_that_scores_highest(share):
    values = cvir_step(_identity, class_prior=share)(_batch())
    log_odds = math.log(share / (1 - share))
    assert float(values["loss"]) == pytest.approx(slow_loss(*_batch(), share, log_odds), rel=1e-5)
    both_risks = float(values["positive_risk"] + values["negative_risk"])
    assert float(values["risk"]) == pytest.approx(both_risks)
    # 9 of the 20 unlabeled scores are above zero
    assert float(values["unlabeled_positive_share"]) == pytest.approx(0.45)


def test_ignored_samples_get_no_gradient():
    unlabeled = torch.tensor([3.0, -1.0, 2.0, 0.0], requires_grad=True)
    step = positive_unlabeled_step(_identity, lambda: 0.5)
    step((torch.zeros(1), unlabeled))["loss"].backward()
    assert unlabeled.grad is not None
    assert (unlabeled.grad != 0).tolist() == [False, True, False, True]


def test_one_unlabeled_sample_is_always_kept():
    step = positive_unlabeled_step(_identity, lambda: 1.0)
    loss = step((torch.zeros(1), torch.tensor([3.0, -1.0])))["loss"]
    assert torch.isfinite(loss)


def test_training_without_positives_is_refused():
    with pytest.raises(ValueError, match="needs positives and unlabeled samples, got 0 and 5"):
        _fit(nn.Linear(2, 1), lambda _: {}, torch.empty(0, 2), torch.rand(5, 2))


def test_folds_are_even_and_complete():
    folds = folds_of(11, 4, torch.Generator().manual_seed(0))
    assert sorted(folds.bincount().tolist()) == [2, 3, 3, 3]
