"""What a full run will take."""

from __future__ import annotations

from typing import Any

import pytest

from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.pilot.forecast import MeasuredCosts, forecast_run
from tests.comparison.builders import block_of

N_SAMPLED = 1000
PRIOR = "pu_training.find_class_prior"
CLASSIFIER = "pu_training.train_pu_classifier"


def forecast(n_pool: int, max_unlabeled: int) -> dict[str, Any]:
    costs = MeasuredCosts(
        n_pool=n_pool,
        n_sampled=N_SAMPLED,
        n_labeled=100,
        n_test=100,
        reading=0.001,
        teacher=0.002,
        prior=2.0,
        classifier=3.0,
        step=0.01,
        feature_bytes=400,
        pixel_bytes=64,
        peak_bytes=10**9,
    )
    pu_training = PUTrainingParams(
        **block_of("pu_training", held_out_folds=0, max_unlabeled=max_unlabeled)
    )
    distillation = DistillationParams(**block_of("distillation", teacher_cache="off"))
    return forecast_run(costs, 500, 10, distillation, pu_training)


def test_class_prior_and_classifier_are_trained_on_no_more_than_max_unlabeled():
    whole = forecast(50_000, max_unlabeled=50_000)["seconds"]
    assert (whole[PRIOR], whole[CLASSIFIER]) == pytest.approx((100.0, 150.0))
    limited = forecast(50_000, max_unlabeled=10_000)["seconds"]
    assert (limited[PRIOR], limited[CLASSIFIER]) == pytest.approx((20.0, 30.0))
    # The pilot was limited, too.
    sampled = forecast(50_000, max_unlabeled=500)["seconds"]
    assert (sampled[PRIOR], sampled[CLASSIFIER]) == pytest.approx((2.0, 3.0))
    # All others read the whole pool.
    others = set(whole) - {PRIOR, CLASSIFIER}
    assert {name: limited[name] for name in others} == {name: whole[name] for name in others}


def test_features_in_memory_are_those_that_are_trained_on():
    pixels = (50_000 - N_SAMPLED) * 64
    whole = forecast(50_000, max_unlabeled=50_000)["memory_bytes"]
    assert whole == 10**9 + pixels + (50_000 - N_SAMPLED) * 2 * 400
    limited = forecast(50_000, max_unlabeled=10_000)["memory_bytes"]
    assert limited == 10**9 + pixels + (10_000 - N_SAMPLED) * 2 * 400
    assert forecast(50_000, max_unlabeled=500)["memory_bytes"] == 10**9 + pixels
