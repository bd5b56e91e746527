"""Exact intervals and McNemar's test, against published values and slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.learning.proportions import (
    exact_interval,
    improvement_p_value,
    upper_tail,
)


@pytest.mark.parametrize(
    ("n_hits", "n", "lower", "upper"),
    [
        # R: binom.test(n_hits, n)$conf.int
        (0, 10, 0.0, 0.3084971),
        (7, 10, 0.3475471, 0.9332605),
        (10, 10, 0.6915029, 1.0),
        (81, 263, 0.2527193, 0.3676403),
    ],
)
def test_intervals_are_those_of_clopper_and_pearson(n_hits, n, lower, upper):
    interval = exact_interval(n_hits, n)

    assert interval.lower == pytest.approx(lower, abs=2e-4)
    assert interval.upper == pytest.approx(upper, abs=2e-4)


@given(st.integers(1, 400), st.floats(0, 1))
def test_an_interval_holds_the_share_and_is_mirrored(n, share):
    n_hits = round(share * n)
    interval = exact_interval(n_hits, n)
    mirrored = exact_interval(n - n_hits, n)

    assert 0 <= interval.lower <= n_hits / n <= interval.upper <= 1
    assert mirrored.lower == pytest.approx(1 - interval.upper, abs=1e-9)


@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_an_interval_covers_the_true_share_as_often_as_it_says(share):
    n = 30
    covered = 0.0
    for n_hits in range(n + 1):
        interval = exact_interval(n_hits, n)
        if interval.lower <= share <= interval.upper:
            covered += math.comb(n, n_hits) * share**n_hits * (1 - share) ** (n - n_hits)

    assert covered >= 0.95


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.99))
def test_the_tail_is_the_sum_of_its_terms(n_hits, n, share):
    terms = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n_hits, n + 1)]

    assert upper_tail(n_hits, n, share) == pytest.approx(sum(terms), abs=1e-9)


def test_large_numbers_neither_overflow_nor_vanish():
    interval = exact_interval(45_000, 60_000)

    assert interval.lower == pytest.approx(0.7465, abs=2e-4)
    assert interval.upper == pytest.approx(0.7535, abs=2e-4)


def test_only_images_on_which_one_is_right_decide_an_improvement():
    now = np.array([True] * 9 + [False] * 1 + [True] * 50 + [False] * 50)
    before = np.array([False] * 9 + [True] * 1 + [True] * 50 + [False] * 50)

    # 9 or more of 10 fair coins
    assert improvement_p_value(now, before) == pytest.approx(11 / 1024)
    # What is worse is not significantly better.
    assert improvement_p_value(before, now) == pytest.approx(1023 / 1024)
    assert improvement_p_value(before, before) == 1.0


@pytest.mark.parametrize(("n_hits", "n"), [(1, 0), (0, 0), (-1, 4), (5, 4)])
def test_impossible_counts_are_refused(n_hits, n):
    with pytest.raises(ValueError, match="expected 0 <= n_hits <= n"):
        exact_interval(n_hits, n)
