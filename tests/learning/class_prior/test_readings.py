"""Two readings of a class prior: where they agree, and what flags them."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.learning.class_prior import readings as readings_module
from pu_kd_pipeline.learning.class_prior.estimate import pooled_ranks
from pu_kd_pipeline.learning.class_prior.estimators import density_ratio_estimate
from pu_kd_pipeline.learning.class_prior.readings import (
    LARGEST_OUTPUT_RATIO,
    LARGEST_RATIO,
    SOURCES_DIFFER,
    TEACHER_CANNOT_RANK,
    ClassPriorReadings,
    Samples,
    agreement_sentence,
    compare_readings,
    flag_sentence,
)
from tests.learning.class_prior.mixtures import mixture


def compared(outputs: Samples, trained_scores: Samples) -> ClassPriorReadings:
    """Return both readings, with DEDPUL on the trained scores as the estimate."""
    ranks = pooled_ranks([trained_scores])
    trained, _ = density_ratio_estimate(*ranks)
    return compare_readings(trained, outputs, ranks, np.random.default_rng(0))


def scores_that_find_the_source(class_prior: float) -> Samples:
    """Return trained scores that rank nearly all positives above those of the pool."""
    rng = np.random.default_rng(1)
    n_hidden = round(class_prior * 2000)
    unlabeled = np.concatenate([rng.normal(3, 1, n_hidden), rng.normal(0, 1, 2000 - n_hidden)])
    return rng.normal(6, 1, 100), unlabeled


@pytest.mark.parametrize("class_prior", [0.1, 0.3, 0.6])
def test_the_outputs_of_a_good_teacher_confirm_a_right_estimate(class_prior: float) -> None:
    outputs = mixture(class_prior, 100, 2000)
    readings = compared(outputs, mixture(class_prior, 100, 2000, seed=1))

    assert readings.outputs == pytest.approx(class_prior, abs=0.1)
    assert readings.ratio == pytest.approx(readings.outputs / readings.trained)
    assert readings.flag is None
    assert flag_sentence(readings) is None
    assert f"{readings.outputs:.3f}" in agreement_sentence(readings)


@pytest.mark.parametrize("class_prior", [0.1, 0.3, 0.6])
def test_trained_scores_that_find_the_source_are_flagged(class_prior: float) -> None:
    outputs = mixture(class_prior, 100, 2000)
    readings = compared(outputs, scores_that_find_the_source(class_prior))

    assert readings.ratio > LARGEST_RATIO
    assert readings.flag == SOURCES_DIFFER
    sentence = str(flag_sentence(readings))
    # Both readings, and both ways out.
    assert f"{readings.trained:.3f}" in sentence
    assert f"{readings.outputs:.3f}" in sentence
    assert "pu_training.class_prior" in sentence
    assert "subset_materialization.budget" in sentence


def test_a_ratio_that_chance_explains_is_no_flag() -> None:
    rng = np.random.default_rng(3)
    outputs = mixture(0.3, 100, 2000)
    # The readings differ, but the trained scores are those of another draw of three positives.
    ranks = pooled_ranks([(rng.normal(3, 1, 3), mixture(0.3, 3, 2000)[1])])
    readings = compare_readings(0.05, outputs, ranks, rng)
    assert readings.ratio > LARGEST_RATIO
    assert readings.ratio_lower is not None
    assert readings.ratio_lower < 1
    assert readings.flag is None


def test_a_teacher_at_chance_is_not_taken_for_another_source() -> None:
    rng = np.random.default_rng(4)
    # All pool images look like positives to it, and it reads a class prior near 1.
    outputs = (rng.normal(size=100), rng.normal(size=2000))
    readings = compared(outputs, mixture(0.1, 100, 2000))

    assert readings.ratio > LARGEST_RATIO
    assert readings.ranking == pytest.approx(0.5, abs=0.1)
    assert readings.flag == TEACHER_CANNOT_RANK


def test_the_implied_ranking_is_that_of_the_output() -> None:
    outputs = mixture(0.3, 2000, 4000)
    readings = compare_readings(0.3, outputs, None, np.random.default_rng(0))
    # N(3, 1) against N(0, 1): Phi(3 / sqrt 2)
    assert readings.ranking == pytest.approx(0.983, abs=0.02)


@pytest.mark.parametrize("trained", [0.06, 0.1, 0.5])
def test_outputs_that_the_two_estimators_read_far_apart_are_flagged(
    monkeypatch: pytest.MonkeyPatch, trained: float
) -> None:
    monkeypatch.setattr(readings_module, "best_bin_estimate", lambda *_: (0.4, 0.0))
    monkeypatch.setattr(readings_module, "density_ratio_estimate", lambda *_: (0.1, None))
    samples = (np.zeros(5), np.zeros(20))
    readings = compare_readings(trained, samples, samples, np.random.default_rng(0))
    assert readings.outputs_ratio > LARGEST_OUTPUT_RATIO
    assert readings.flag == TEACHER_CANNOT_RANK
    assert "cannot rank" in str(flag_sentence(readings))


def test_no_random_sample_of_the_positives_separates_better_than_the_bound() -> None:
    class_prior = 0.4
    scores = mixture(class_prior, 4000, 4000)
    readings = compared(scores, scores)

    # Even a perfect score ranks half of the pool's positives above a random positive.
    assert readings.largest is not None
    assert readings.largest >= class_prior
    # A score that finds the source breaks the bound.
    differing = compared(scores, scores_that_find_the_source(class_prior))
    assert differing.largest is not None
    assert differing.largest < class_prior


def test_without_a_trained_score_the_sources_are_not_compared() -> None:
    outputs = mixture(0.3, 100, 2000)
    readings = compare_readings(0.01, outputs, None, np.random.default_rng(0))
    assert readings.ratio > LARGEST_RATIO
    assert (readings.auc, readings.largest, readings.ratio_lower, readings.flag) == (None,) * 4
