"""PU training on Gaussians: nnPU finds the positives; uPU drives its risk below zero where nnPU does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.pu_training import (
    ScoreTraining,
    fit_scores,
    folds_of,
    positive_unlabeled_step,
    pu_step,
)

PRIOR = 0.4
TRAINING = ScoreTraining(20, 32, 100, "adam", 0.01, 0.9, 0.0, "constant")


def _samples(n_positive, n_unlabeled, size=2, distance=2.5):
    generator = torch.Generator().manual_seed(0)
    is_positive = torch.rand(n_unlabeled, generator=generator) < PRIOR
    unlabeled = torch.randn(n_unlabeled, size, generator=generator) + distance * (
        is_positive * 1.0 - 0.5
    ).unsqueeze(1)
    return torch.randn(n_positive, size, generator=generator) + distance / 2, unlabeled, is_positive


def _fit(module, step, positive, unlabeled, training=TRAINING):
    records = fit_scores(
        module, step, positive.__getitem__, unlabeled.__getitem__, n_positive=len(positive),
        n_unlabeled=len(unlabeled), training=training, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return list(records)


def _score(module):
    return lambda x: module(x).squeeze(1)


def test_nnpu_finds_the_positives_among_the_unlabeled():
    positive, unlabeled, is_positive = _samples(100, 1000)
    with seeded(0):
        module = nn.Linear(2, 1)
    step = pu_step(_score(module), class_prior=PRIOR, estimator="nnpu", beta=0.0, gamma=1.0)
    records = _fit(module, step, positive, unlabeled)
    with torch.no_grad():
        scores = _score(module)(unlabeled)
    assert len(records) == TRAINING.epochs
    assert [r["epoch"] for r in records] == list(range(1, TRAINING.epochs + 1))
    assert ((scores > 0) == is_positive).float().mean() > 0.93


def test_upu_overfits_below_zero_where_nnpu_does_not():
    positive, unlabeled, _ = _samples(20, 400, size=50, distance=0.2)
    training = ScoreTraining(300, 20, 400, "adam", 0.01, 0.9, 0.0, "constant")
    last = {}
    for estimator in ("upu", "nnpu"):
        with seeded(0):
            module = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 1))
        step = pu_step(_score(module), class_prior=PRIOR, estimator=estimator, beta=0.0, gamma=1.0)
        last[estimator] = _fit(module, step, positive, unlabeled, training)[-1]
    assert last["upu"]["risk"] < -0.1
    assert last["upu"]["ascent_share"] == 0
    assert last["nnpu"]["risk"] >= 0
    assert last["nnpu"]["negative_risk"] > -0.1


def test_positive_against_unlabeled_ranks_positives_first():
    positive, unlabeled, is_positive = _samples(100, 1000)
    with seeded(0):
        module = nn.Linear(2, 1)
    _fit(module, positive_unlabeled_step(_score(module)), positive, unlabeled)
    with torch.no_grad():
        assert area_under_roc(_score(module)(unlabeled).numpy(), is_positive.numpy()) > 0.97


def test_training_without_positives_is_refused():
    with pytest.raises(ValueError, match="needs positives and unlabeled samples, got 0 and 5"):
        _fit(nn.Linear(2, 1), lambda _: {}, torch.empty(0, 2), torch.rand(5, 2))


def test_folds_are_even_and_complete():
    folds = folds_of(11, 4, torch.Generator().manual_seed(0))
    assert sorted(folds.bincount().tolist()) == [2, 3, 3, 3]
