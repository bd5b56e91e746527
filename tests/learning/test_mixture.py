"""Mixture sampling: the distribution of related draws, and how their share changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.mixture import (
    batch_counts,
    effective_number,
    related_probabilities,
    related_schedule,
)

PROGRESS = np.linspace(0.0, 1.0, 2001)
schedules = {
    "first": st.floats(0.01, 1.0),
    "max_repeats": st.floats(0.1, 1000.0),
    "n_effective": st.floats(1.0, 1e6),
    "n_draws": st.floats(1.0, 1e9),
}


def slow_related_probabilities(
    scores: np.ndarray, classes: np.ndarray, tie_break: np.ndarray, temperature: float
) -> np.ndarray:
    """The formula of the docstring, image by image."""
    n = len(scores)
    order = sorted(range(n), key=lambda row: (-scores[row], tie_break[row]))
    weights = np.zeros(n)
    for place, row in enumerate(order):
        rank = 1 - place / n
        weights[row] = math.exp((rank - 1) / temperature)
    result = np.zeros(n)
    present = sorted(set(classes.tolist()))
    for row in range(n):
        of_class = sum(weights[other] for other in range(n) if classes[other] == classes[row])
        result[row] = weights[row] / of_class / len(present)
    return result


@settings(deadline=None, max_examples=40)
@given(
    scores=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    temperature=st.floats(0.02, 5.0),
    seed=st.integers(0, 99),
)
def test_related_probabilities_are_those_of_the_formula(
    scores: list[int], temperature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = len(scores)
    values = np.array(scores, dtype=np.float32)
    classes = rng.integers(4, size=n)
    tie_break = rng.permutation(n).astype(np.uint64)
    probabilities = related_probabilities(values, classes, tie_break, temperature=temperature)

    assert probabilities.sum() == pytest.approx(1.0)
    expected = slow_related_probabilities(values, classes, tie_break, temperature)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-9)
    # Every class is drawn as often as any other.
    sums = [probabilities[classes == label].sum() for label in set(classes.tolist())]
    np.testing.assert_allclose(sums, 1 / len(sums), rtol=1e-9)


def test_a_class_of_low_ranks_does_not_underflow() -> None:
    scores = np.arange(3000, 0, -1).astype(np.float32)
    classes = np.zeros(3000, dtype=np.int64)
    classes[-2:] = 7
    tie_break = np.arange(3000, dtype=np.uint64)
    probabilities = related_probabilities(scores, classes, tie_break, temperature=1e-4)
    assert probabilities[-2:].sum() == pytest.approx(0.5)
    assert np.isfinite(probabilities).all()


def test_the_effective_number_of_the_ranks_is_twice_the_temperature() -> None:
    scores = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    one_class = np.zeros(10_000, dtype=np.int64)
    tie_break = np.arange(10_000, dtype=np.uint64)
    probabilities = related_probabilities(scores, one_class, tie_break, temperature=0.05)
    assert effective_number(probabilities) == pytest.approx(2 * 0.05 * 10_000, rel=0.01)


@settings(deadline=None, max_examples=200)
@given(**schedules)
def test_the_share_falls_within_bounds_and_has_the_mean_of_the_formula(
    first: float, max_repeats: float, n_effective: float, n_draws: float
) -> None:
    schedule = related_schedule(
        first=first,
        max_repeats=max_repeats,
        n_effective=n_effective,
        n_draws=n_draws,
    )
    shares = schedule.share(PROGRESS)
    assert shares[0] == pytest.approx(first)
    assert shares[-1] == pytest.approx(schedule.last, abs=1e-9)
    assert (shares >= -1e-12).all()
    assert (shares <= first + 1e-12).all()
    assert (np.diff(shares) <= 1e-12).all()

    expected = min(first, max_repeats * n_effective / n_draws)
    assert schedule.mean == pytest.approx(expected)
    # A drawn related image is shown at most `max_repeats` times in the mean over related draws.
    assert schedule.mean * n_draws / n_effective <= max_repeats * (1 + 1e-9)


@settings(deadline=None, max_examples=100)
@given(**schedules, longer=st.floats(1.0, 100.0))
def test_a_longer_training_never_has_a_larger_share_at_any_point(
    first: float,
    max_repeats: float,
    n_effective: float,
    n_draws: float,
    longer: float,
) -> None:
    facts = {
        "first": first,
        "max_repeats": max_repeats,
        "n_effective": n_effective,
    }
    short = related_schedule(**facts, n_draws=n_draws)
    long = related_schedule(**facts, n_draws=n_draws * longer)
    assert (long.share(PROGRESS) <= short.share(PROGRESS) + 1e-9).all()


def test_a_short_training_is_purely_related_and_a_long_one_ends_uniform() -> None:
    # 827 images are drawn often: 0.1 of a pool of 8,270; 54 of 64 images come from the pool.
    facts = {"first": 1.0, "max_repeats": 150.0, "n_effective": 827.0}
    few = related_schedule(**facts, n_draws=1_200 * 54.4)
    assert (few.first, few.last, few.end) == (1.0, 1.0, 1.0)
    many = related_schedule(**facts, n_draws=4_800 * 54.4)
    assert many.last == 0.0
    assert many.end == pytest.approx(0.95, abs=0.01)
    very_many = related_schedule(**facts, n_draws=20_000 * 54.4)
    assert very_many.end == pytest.approx(0.228, abs=0.01)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("first", 0.0),
        ("first", 1.1),
        ("max_repeats", 0.0),
        ("n_draws", 0.0),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    facts = {"first": 1.0, "max_repeats": 100.0, "n_effective": 10.0, "n_draws": 1000.0}
    with pytest.raises(ValueError, match=name):
        related_schedule(**{**facts, name: value})


@settings(deadline=None, max_examples=100)
@given(
    n_updates=st.integers(1, 300),
    batch_size=st.integers(1, 70),
    labeled_share=st.floats(0.0, 1.0),
    max_repeats=st.one_of(st.none(), st.floats(0.1, 100.0)),
)
def test_counts_keep_the_shares_and_fill_every_batch(
    n_updates: int, batch_size: int, labeled_share: float, max_repeats: float | None
) -> None:
    schedule = None
    n_pool_draws = n_updates * batch_size * (1 - labeled_share)
    if max_repeats is not None and n_pool_draws > 0:
        schedule = related_schedule(
            first=1.0, max_repeats=max_repeats, n_effective=20.0, n_draws=n_pool_draws
        )
    counts = batch_counts(n_updates, batch_size, labeled_share=labeled_share, schedule=schedule)
    assert counts.shape == (n_updates, 3)
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == batch_size).all()
    # Whole images: never more than one away from the share, at any time.
    n_done = np.arange(1, n_updates + 1)
    deviation = np.abs(counts[:, 0].cumsum() - n_done * batch_size * labeled_share)
    assert (deviation <= 1 + 1e-6).all()
    if schedule is None:
        assert counts[:, 1].sum() == 0
    elif n_updates >= 50:
        assert counts[:, 1].sum() == pytest.approx(schedule.mean * n_pool_draws, rel=0.05, abs=3)
