"""The expected calibration error, against its definition and for models with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.learning.calibration import measure_calibration


@pytest.mark.parametrize("n_bins", [1, 7, 15])
def test_the_error_is_that_of_the_definition(n_bins):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=400).astype(np.float32)
    confidence[:4] = [0.0, 1.0, 1 / 15, 2 / 15]
    is_right = rng.uniform(size=400) < confidence**2
    found = measure_calibration(confidence, is_right, n_bins)

    error = 0.0
    for number in range(n_bins):
        members = []
        for value, right in zip(confidence.astype(np.float64), is_right, strict=True):
            is_first = number == 0 and value == 0
            if is_first or number < value * n_bins <= number + 1:
                members.append((value, right))
        assert found.counts[number] == len(members)
        if not members:
            assert np.isnan(found.right[number])
            continue
        mean_confidence = np.mean([value for value, _ in members])
        share_right = np.mean([right for _, right in members])
        assert found.confidence[number] == pytest.approx(mean_confidence)
        assert found.right[number] == pytest.approx(share_right)
        error += len(members) / 400 * abs(mean_confidence - share_right)
    assert found.error == pytest.approx(error)


def test_a_model_that_is_right_as_often_as_it_says_has_a_small_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1.0, size=100_000)
    is_right = rng.uniform(size=100_000) < confidence
    assert measure_calibration(confidence, is_right).error < 0.005
    # One that says 20 points more than it knows has this error.
    too_sure = np.minimum(confidence, 0.8) + 0.2
    is_right = rng.uniform(size=100_000) < too_sure - 0.2
    assert measure_calibration(too_sure, is_right).error == pytest.approx(0.2, abs=0.005)


def test_a_model_that_is_always_sure_and_right_has_none():
    found = measure_calibration(np.ones(5), np.ones(5, dtype=bool))
    assert found.error == 0
    assert found.counts.tolist() == [0] * 14 + [5]


@pytest.mark.parametrize(
    ("confidence", "is_right"),
    [([], []), ([0.5], [True, False]), ([1.5], [True]), ([np.nan], [True]), ([-0.1], [True])],
)
def test_unusable_values_are_refused(confidence, is_right):
    with pytest.raises(ValueError, match=r"vectors|lie in"):
        measure_calibration(np.array(confidence, dtype=float), np.array(is_right, dtype=bool))
