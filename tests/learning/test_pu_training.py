"""Steps and batches of PU training: nnPU, uPU, CVIR, and positives against unlabeled."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.pu_training import (
    ScoreTraining,
    assign_folds,
    cvir_step,
    fit_scores,
    positive_unlabeled_step,
    pu_step,
)
from tests.learning.gaussians import LinearScore, samples
from tests.learning.generators import seeded_generator

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
        generator=seeded_generator(1),
    )
    # `fit_scores` is lazy: the list makes it train.
    return list(records)


def _scores(module, features):
    with torch.no_grad():
        return module(features)


def _share(is_true):
    return is_true.float().mean().item()


def _area(scores, is_positive):
    return area_under_roc(scores.numpy(), is_positive.numpy())


def test_nnpu_finds_the_positives_among_the_unlabeled():
    positive, unlabeled, is_positive = samples(PRIOR, 100, 1000, 2, distance=3.5, seed=0)
    score = _linear_score()
    step = pu_step(score, class_prior=PRIOR, estimator="nnpu", beta=0.0, gamma=1.0)

    records = _fit(score, step, positive, unlabeled)
    epochs = [record["epoch"] for record in records]
    is_called_positive = _scores(score, unlabeled) > 0
    is_correct = is_called_positive == is_positive

    assert epochs == list(range(1, TRAINING.epochs + 1))
    assert _share(is_correct) > 0.93


def _overfitting_network():
    with seeded(0):
        return nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 1), nn.Flatten(0))


def _last_record_of_an_overfitting_network(estimator):
    # 20 positives in 50 dimensions can be separated from any unlabeled samples.
    positive, unlabeled, _ = samples(PRIOR, 20, 400, 50, distance=1.4, seed=0)
    training = ScoreTraining(300, 20, 400, "adam", 0.01, 0.9, 0.0, "constant")
    network = _overfitting_network()
    step = pu_step(network, class_prior=PRIOR, estimator=estimator, beta=0.0, gamma=1.0)
    records = _fit(network, step, positive, unlabeled, training)
    return records[-1]


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
    step = positive_unlabeled_step(score)
    _fit(score, step, positive, unlabeled)
    scores = _scores(score, unlabeled)

    # The ranking alone: without the class prior there is no right threshold.
    assert _area(scores, is_positive) > 0.97


def test_cvir_finds_the_positives_and_its_sign_is_the_bayes_rule():
    positive, unlabeled, is_positive = samples(0.2, 200, 2000, 2, seed=3)
    training = ScoreTraining(12, 32, 100, "adam", 0.1, 0.9, 1e-3, "cosine")
    score = _linear_score()
    step = cvir_step(score, class_prior=0.2)

    _fit(score, step, positive, unlabeled, training)
    scores = _scores(score, unlabeled)
    # Zero is the threshold, because the scores are log-odds.
    is_called_positive = scores > 0
    is_correct = is_called_positive == is_positive

    assert _area(scores, is_positive) > 0.97
    # The best possible rule errs on 5.2 % of this mixture, balanced logits on 6.7 %.
    assert _share(is_correct) > 0.93
    assert _share(is_called_positive) == pytest.approx(0.2, abs=0.05)


def test_cvir_refuses_a_class_prior_outside_of_the_open_interval():
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1, got 0"):
        cvir_step(_identity, class_prior=0.0)


def softplus(score: float) -> float:
    return math.log1p(math.exp(score))


def slow_loss(
    positive: Tensor, unlabeled: Tensor, dropped_share: float, offset: float = 0.0
) -> float:
    """Balanced logistic loss of the positives against the lowest unlabeled, one at a time."""
    n_kept = round((1 - dropped_share) * len(unlabeled))
    # The highest scores are the likely positives, which are left out.
    by_score = sorted(unlabeled.tolist())
    kept = by_score[:n_kept]

    positive_losses = [softplus(offset - score) for score in positive.tolist()]
    kept_losses = [softplus(score - offset) for score in kept]
    positive_loss = statistics.fmean(positive_losses)
    kept_loss = statistics.fmean(kept_losses)
    return (positive_loss + kept_loss) / 2


def _batch() -> tuple[Tensor, Tensor]:
    positive = torch.randn(7, generator=seeded_generator())
    # Descending, so that the highest scores are not where a sort would put them.
    unlabeled = torch.arange(20.0).flip(0) / 5 - 2
    return positive, unlabeled


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_the_share_that_scores_highest_is_left_out_of_the_loss(share):
    positive, unlabeled = _batch()
    step = positive_unlabeled_step(_identity, lambda: share)
    values = step((positive, unlabeled))
    expected = slow_loss(positive, unlabeled, share)

    assert values["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_cvir_ignores_the_share_that_scores_highest(share):
    positive, unlabeled = _batch()
    step = cvir_step(_identity, class_prior=share)
    values = step((positive, unlabeled))
    loss = values["loss"].item()
    risk = values["risk"].item()
    positive_share = values["unlabeled_positive_share"].item()
    # The loss is balanced, so the prior comes back as an offset of the scores.
    log_odds = math.log(share / (1 - share))
    expected_loss = slow_loss(positive, unlabeled, share, log_odds)
    both_risks = values["positive_risk"] + values["negative_risk"]

    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert risk == pytest.approx(both_risks.item())
    # 9 of the 20 unlabeled scores are above zero
    assert positive_share == pytest.approx(0.45)


def test_ignored_samples_get_no_gradient():
    positive = torch.zeros(1)
    unlabeled = torch.tensor([3.0, -1.0, 2.0, 0.0], requires_grad=True)
    step = positive_unlabeled_step(_identity, lambda: 0.5)
    values = step((positive, unlabeled))
    values["loss"].backward()

    assert unlabeled.grad is not None

    has_gradient = unlabeled.grad != 0
    assert has_gradient.tolist() == [False, True, False, True]


def test_one_unlabeled_sample_is_always_kept():
    positive = torch.zeros(1)
    unlabeled = torch.tensor([3.0, -1.0])
    step = positive_unlabeled_step(_identity, lambda: 1.0)
    values = step((positive, unlabeled))

    # The mean of no sample would be nan.
    assert torch.isfinite(values["loss"])


def test_training_without_positives_is_refused():
    score = nn.Linear(2, 1)
    no_positive = torch.empty(0, 2)
    unlabeled = torch.rand(5, 2)

    with pytest.raises(ValueError, match="needs positives and unlabeled samples, got 0 and 5"):
        _fit(score, lambda _: {}, no_positive, unlabeled)


def test_folds_are_even_and_complete():
    folds = assign_folds(11, 4, seeded_generator())
    sizes = folds.bincount().tolist()

    assert sorted(sizes) == [2, 3, 3, 3]
