"""Agreement over the length of training, and its continuation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.learning.learning_curves import (
    FittedLine,
    LearningCurve,
    TrainingNoise,
    fit_line,
    forecast_difference,
    forecast_share,
    training_noise,
)
from pu_kd_pipeline.learning.paired import paired_difference

LENGTHS = (100, 200, 400)


def curve_of(log_odds: list[float], n_images: int, lengths: tuple[int, ...]) -> LearningCurve:
    shares = 1 / (1 + np.exp(-np.array(log_odds)))
    hits = tuple(int(hit) for hit in np.round(shares * n_images))
    return LearningCurve(lengths, hits, n_images)


def test_a_line_is_the_one_of_least_squares():
    curve = LearningCurve(LENGTHS, (400, 500, 620), 1000)
    line = fit_line(curve)
    slope, intercept = np.polyfit(np.log(LENGTHS), curve.log_odds, 1)
    assert line.slope == pytest.approx(slope)
    assert line.level == pytest.approx(intercept + slope * math.log(400))
    fitted = intercept + slope * np.log(LENGTHS)
    assert line.squared_error == pytest.approx(((curve.log_odds - fitted) ** 2).sum())
    assert line.freedom == 1
    assert line.log_odds(1600) == pytest.approx(intercept + slope * math.log(1600))


def test_a_falling_curve_is_continued_flat():
    line = fit_line(LearningCurve(LENGTHS, (700, 600, 500), 1000))
    assert line.slope == 0
    assert line.log_odds(10_000) == line.level
    # At the mean of what was measured, and not at the last training.
    assert 1 / (1 + math.exp(-line.level)) == pytest.approx(0.6, abs=0.005)


def test_one_length_gives_a_flat_line_without_an_error():
    line = fit_line(LearningCurve((300,), (250,), 500))
    assert (line.slope, line.squared_error, line.freedom) == (0, 0, 0)


@pytest.mark.parametrize("hits", [0, 50])
def test_a_student_that_is_never_or_always_right_has_a_finite_forecast(hits):
    line = fit_line(LearningCurve(LENGTHS, (hits, hits, hits), 50))
    forecast = forecast_share(line, training_noise([line]), 5000)
    assert 0 <= forecast.lower <= forecast.value <= forecast.upper <= 1
    assert forecast.upper - forecast.lower > 0.02


@given(
    hits=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    n_updates=st.integers(1, 100_000),
)
def test_forecasts_are_ordered_and_widen_with_the_length(hits, n_updates):
    lengths = tuple(50 * 2**place for place in range(len(hits)))
    line = fit_line(LearningCurve(lengths, tuple(hits), 400))
    noise = training_noise([line])
    near = forecast_share(line, noise, n_updates)
    far = forecast_share(line, noise, 2 * n_updates)
    assert near.lower <= near.value <= near.upper
    assert far.upper >= near.upper
    # A student does not get worse: the lower limit is that of the longest training.
    assert far.lower == near.lower


def test_noise_is_pooled_with_what_is_usual():
    quiet = FittedLine(400, 0.0, 0.5, squared_error=0.0, freedom=1, n_images=100)
    loud = FittedLine(400, 0.0, 0.5, squared_error=2.0, freedom=1, n_images=100)
    nothing = training_noise([])
    assert nothing.deviation == pytest.approx(0.1)
    assert training_noise([quiet] * 4).deviation < nothing.deviation
    assert training_noise([loud]).deviation > nothing.deviation
    assert training_noise([quiet, loud]).freedom == nothing.freedom + 2
    # More knowledge, a smaller quantile.
    assert training_noise([loud] * 20).quantile < nothing.quantile


def test_a_difference_lies_between_measured_and_continued():
    rng = np.random.default_rng(0)
    first = rng.random(1000) < 0.62
    second = rng.random(1000) < 0.55
    measured = paired_difference(first, second)
    # The second catches up: it is steeper.
    steep = fit_line(LearningCurve(LENGTHS, (350, 450, 550), 1000))
    flat = fit_line(LearningCurve(LENGTHS, (600, 610, 620), 1000))
    noise = TrainingNoise(0.05, 10)
    forecast = forecast_difference(flat, steep, noise, measured, 1600)
    continued = 1 / (1 + math.exp(-flat.log_odds(1600))) - 1 / (1 + math.exp(-steep.log_odds(1600)))
    assert continued < 0 < measured.difference
    assert forecast.value == pytest.approx((measured.difference + continued) / 2)
    assert forecast.lower < continued
    assert forecast.upper > measured.upper
    # A difference has the other sign the other way round.
    opposite = forecast_difference(steep, flat, noise, paired_difference(second, first), 1600)
    assert opposite.value == pytest.approx(-forecast.value)
    assert opposite.lower == pytest.approx(-forecast.upper)


def test_intervals_contain_what_longer_trainings_reach():
    """Curves that saturate, with noise of trainings and of images, as the model assumes."""
    rng = np.random.default_rng(1)
    n_images = 300
    target = 1600
    n_inside = 0
    n_trials = 300
    for _ in range(n_trials):
        start = rng.uniform(-2, 2)
        gain = rng.uniform(0, 0.8)
        # The growth slows down behind the pilot's lengths.
        later = rng.uniform(0.1, 0.9)

        def level(length: int, start=start, gain=gain, later=later) -> float:
            until = min(length, 400)
            behind = max(0.0, math.log(length / 400))
            return start + gain * math.log(until / 100) + later * gain * behind

        easiness = rng.logistic(size=n_images)

        def hits(length: int, level=level, easiness=easiness) -> int:
            noise = rng.normal(scale=0.1)
            return int((easiness < level(length) + noise).sum())

        lines = [
            fit_line(LearningCurve(LENGTHS, tuple(hits(length) for length in LENGTHS), n_images))
            for _ in range(1)
        ]
        forecast = forecast_share(lines[0], training_noise(lines), target)
        # The share of the long training among all images.
        truth = 1 / (1 + math.exp(-level(target) - rng.normal(scale=0.1)))
        n_inside += forecast.lower <= truth <= forecast.upper
    assert n_inside / n_trials >= 0.93
