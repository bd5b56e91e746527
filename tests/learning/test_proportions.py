"""Exact intervals and McNemar's test, against published values and slow references."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pu_kd_pipeline.learning.proportions import (
    clopper_pearson_interval,
    count_discordant,
    mcnemar_p_value,
)


@pytest.mark.parametrize(
    ("n_hits", "n", "lower", "upper"),
    [
        # R: binom.test(n_hits, n)$conf.int
        (0, 10, 0.0, 0.3084971),
        (7, 10, 0.3475471, 0.9332605),
        (10, 10, 0.6915029, 1.0),
    ],
)
def test_intervals_are_those_of_clopper_and_pearson(n_hits, n, lower, upper):
    interval = clopper_pearson_interval(n_hits, n)

    assert interval.lower == pytest.approx(lower, abs=5e-8)
    assert interval.upper == pytest.approx(upper, abs=5e-8)


@given(st.integers(1, 400), st.floats(0, 1))
def test_an_interval_holds_the_share_and_is_mirrored(n, share):
    n_hits = round(share * n)
    interval = clopper_pearson_interval(n_hits, n)
    mirrored = clopper_pearson_interval(n - n_hits, n)

    assert 0 <= interval.lower <= n_hits / n <= interval.upper <= 1
    assert mirrored.lower == pytest.approx(1 - interval.upper, abs=1e-9)


@pytest.mark.parametrize(("n_hits", "n"), [(1, 1), (1, 30), (7, 10), (81, 263), (399, 400)])
def test_at_a_bound_what_was_counted_or_more_has_the_probability_of_a_tail(n_hits, n):
    interval = clopper_pearson_interval(n_hits, n, level=0.9)
    # What was counted or fewer, seen as misses.
    of_misses = clopper_pearson_interval(n - n_hits, n, level=0.9)

    for share in (interval.lower, 1 - of_misses.upper):
        probability = 0.0
        for k in range(n_hits, n + 1):
            probability += math.comb(n, k) * share**k * (1 - share) ** (n - k)
        assert probability == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_an_interval_covers_the_true_share_as_often_as_it_says(share):
    n = 30
    covered = 0.0
    for n_hits in range(n + 1):
        interval = clopper_pearson_interval(n_hits, n)
        if interval.lower <= share <= interval.upper:
            covered += math.comb(n, n_hits) * share**n_hits * (1 - share) ** (n - n_hits)

    assert covered >= 0.95


def test_the_interval_of_large_numbers_neither_overflows_nor_vanishes():
    interval = clopper_pearson_interval(45_000, 60_000)

    assert interval.lower == pytest.approx(0.7465, abs=2e-4)
    assert interval.upper == pytest.approx(0.7535, abs=2e-4)


@pytest.mark.parametrize(("n_hits", "n"), [(1, 0), (0, 0), (-1, 4), (5, 4)])
def test_impossible_counts_are_refused(n_hits, n):
    with pytest.raises(ValueError, match="expected 0 <= n_hits <= n"):
        clopper_pearson_interval(n_hits, n)


# --- McNemar's test ---


def tail(n_hits: int, n: int) -> Fraction:
    """Return the probability of `n_hits` or more of `n` fair coins, as the sum of all terms."""
    n_ways = 0
    for k in range(n_hits, n + 1):
        n_ways += math.comb(n, k)
    return Fraction(n_ways, 2**n)


@given(st.integers(0, 80), st.integers(0, 80))
@example(0, 0)
@example(40, 40)
@example(700, 801)
@example(3, 1000)
def test_the_exact_test_is_an_enumeration_of_all_outcomes(n_first, n_second):
    n = n_first + n_second
    of_more = tail(max(n_first, n_second), n)
    two_sided = min(1.0, float(2 * of_more))
    greater = float(tail(n_first, n))

    assert mcnemar_p_value(n_first, n_second) == pytest.approx(two_sided, rel=1e-9)
    assert mcnemar_p_value(n_first, n_second, alternative="greater") == pytest.approx(
        greater, rel=1e-9
    )


def test_tens_of_thousands_of_discordant_images_are_counted_exactly():
    n_first = 10_100
    n_second = 9_900
    n = n_first + n_second
    # The normal distribution with the correction for continuity is close enough here.
    z = (n_first - n_second - 1) / math.sqrt(n)
    expected = 2 * NormalDist().cdf(-z)

    assert mcnemar_p_value(n_first, n_second) == pytest.approx(expected, rel=1e-4)
    assert mcnemar_p_value(n_first, n_second) == mcnemar_p_value(n_second, n_first)


def test_only_images_on_which_one_is_right_decide():
    now = np.array([True] * 9 + [False] * 1 + [True] * 50 + [False] * 50)
    before = np.array([False] * 9 + [True] * 1 + [True] * 50 + [False] * 50)

    assert count_discordant(now, before) == (9, 1)
    assert count_discordant(before, now) == (1, 9)
    assert count_discordant(before, before) == (0, 0)
    # 9 or more of 10 fair coins
    assert mcnemar_p_value(9, 1, alternative="greater") == pytest.approx(11 / 1024)
    assert mcnemar_p_value(9, 1) == pytest.approx(22 / 1024)
    # What is worse is not significantly better.
    assert mcnemar_p_value(1, 9, alternative="greater") == pytest.approx(1023 / 1024)


def test_equally_good_models_are_rarely_called_different():
    for n in (5, 25, 60):
        n_rejected = 0
        for n_first in range(n + 1):
            if mcnemar_p_value(n_first, n - n_first) < 0.05:
                n_rejected += math.comb(n, n_first)
        # An exact test holds its level.
        assert n_rejected / 2**n <= 0.05


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        mcnemar_p_value(-1, 3)
    with pytest.raises(ValueError, match="must not be negative"):
        mcnemar_p_value(3, -1, alternative="greater")
