"""Strata, allocation, estimate and interval of a stratified sample, against slow references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pu_kd_pipeline.learning.proportions import clopper_pearson_interval
from pu_kd_pipeline.learning.stratified import (
    ANSWERS_OF_100,
    StratifiedCounts,
    allocate_answers,
    estimate_share,
    stratum_sizes,
    tail_probability,
)


def counts_of(sizes, n, hits, unknown=None) -> StratifiedCounts:
    arrays = [np.array(each, dtype=np.int64) for each in (sizes, n, hits)]
    if unknown is None:
        unknown = np.zeros(len(sizes), dtype=np.int64)
    return StratifiedCounts(*arrays, np.array(unknown, dtype=np.int64))


def binomial_probability(hits: int, n: int, share: float) -> float:
    # SciPy's overflows in some versions, where the share is a denormal number.
    return math.comb(n, hits) * share**hits * (1 - share) ** (n - hits)


@st.composite
def samples(draw, *, with_unknown: bool = False):
    """Counts of two to six strata, some of them without answers or answered in full."""
    n_strata = draw(st.integers(2, 6))
    sizes, n, hits, unknown = [], [], [], []
    for _ in range(n_strata):
        sizes.append(draw(st.integers(1, 300)))
        n.append(draw(st.integers(0, min(sizes[-1], 12))))
        hits.append(draw(st.integers(0, n[-1])))
        unknown.append(draw(st.integers(0, n[-1] - hits[-1])) if with_unknown else 0)
    return counts_of(sizes, n, hits, unknown)


@given(st.integers(0, 10**7))
def test_strata_hold_every_image_once_and_grow_from_the_top(n_images):
    sizes = stratum_sizes(n_images)
    assert sizes.sum() == n_images
    # Up to rounding
    assert (np.diff(sizes) >= -1).all()


@given(n_images=st.integers(1, 5000), n_answers=st.integers(1, 400))
def test_the_answers_are_all_given_out_and_no_stratum_gets_more_than_it_holds(n_images, n_answers):
    sizes = stratum_sizes(n_images)
    allocated = allocate_answers(n_answers, sizes)
    assert allocated.sum() == min(n_answers, n_images)
    assert (allocated <= sizes).all()
    assert (allocated >= 0).all()


def test_a_large_pool_gets_the_stated_allocation():
    assert allocate_answers(100, stratum_sizes(10**6)).tolist() == list(ANSWERS_OF_100)


@given(
    strata=st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=3
    ),
    data=st.data(),
)
def test_tail_probabilities_are_those_of_all_possible_counts(strata, data):
    shares, n, steps = zip(*strata, strict=True)
    largest = sum(number * step for number, step in zip(n, steps, strict=True))
    threshold = data.draw(st.integers(0, largest))
    expected = 0.0
    for found in itertools.product(*(range(number + 1) for number in n)):
        if np.dot(found, steps) >= threshold:
            expected += math.prod(map(binomial_probability, found, n, shares))
    probability, _ = tail_probability(shares, n, steps, threshold)
    assert probability == pytest.approx(expected, abs=1e-9)


def test_the_gradient_of_a_tail_probability_is_that_of_small_changes():
    shares = np.array([0.1, 0.5, 0.9])
    n = (7, 4, 9)
    steps = (3, 1, 2)
    _, gradient = tail_probability(shares, n, steps, 17)
    for stratum in range(3):
        change = np.zeros(3)
        change[stratum] = 1e-6
        above, _ = tail_probability(shares + change, n, steps, 17)
        below, _ = tail_probability(shares - change, n, steps, 17)
        assert gradient[stratum] == pytest.approx((above - below) / 2e-6, rel=1e-5)


@given(samples(with_unknown=True))
@settings(max_examples=25)
def test_the_value_is_the_weighted_share_and_lies_in_the_interval(counts):
    found = estimate_share(counts)
    expected = 0.0
    for size, n, hits, unknown in zip(*counts, strict=True):
        share = (hits + unknown / 2) / n if n else 0.5
        expected += size / counts.sizes.sum() * share
    assert found.value == pytest.approx(expected)
    assert 0 <= found.lower <= found.value <= found.upper <= 1


@given(samples())
@settings(max_examples=25)
def test_the_interval_of_the_negatives_is_the_mirror_image(counts):
    found = estimate_share(counts)
    mirrored = estimate_share(counts._replace(hits=counts.n - counts.hits))
    assert mirrored.value == pytest.approx(1 - found.value)
    assert mirrored.lower == pytest.approx(1 - found.upper)
    assert mirrored.upper == pytest.approx(1 - found.lower)


@given(samples(with_unknown=True))
@settings(max_examples=15)
def test_not_knowing_makes_the_interval_wider_and_reaches_from_all_no_to_all_yes(counts):
    none = np.zeros_like(counts.unknown)
    found = estimate_share(counts)
    all_no = estimate_share(counts._replace(unknown=none))
    all_yes = estimate_share(counts._replace(hits=counts.hits + counts.unknown, unknown=none))
    assert found.lower == pytest.approx(min(all_no.lower, found.value))
    assert found.upper == pytest.approx(max(all_yes.upper, found.value))


@pytest.mark.parametrize(("n", "hits"), [(20, 0), (20, 3), (50, 25), (30, 30)])
def test_one_stratum_has_the_interval_of_clopper_and_pearson(n, hits):
    found = estimate_share(counts_of([10**6], [n], [hits]))
    expected = clopper_pearson_interval(hits, n)
    assert found.lower == pytest.approx(expected.lower, abs=1e-3)
    assert found.upper == pytest.approx(expected.upper, abs=1e-3)
    # Moved outwards, if at all
    assert found.lower <= expected.lower + 1e-6
    assert found.upper >= expected.upper - 1e-6


def smallest_share_on_a_grid(weights, n, steps, threshold, tail, n_points=201):
    """Return the smallest weighted share of two strata, by trying all pairs of a grid."""
    grid = np.linspace(0, 1, n_points)
    counts = [stats.binom.pmf(np.arange(m + 1), m, grid[:, None]) for m in n]
    sums = steps[0] * np.arange(n[0] + 1)[:, None] + steps[1] * np.arange(n[1] + 1)
    reached = (sums >= threshold).astype(float)
    probability = counts[0] @ reached @ counts[1].T
    shares = weights[0] * grid[:, None] + weights[1] * grid
    return shares[probability >= tail].min()


@pytest.mark.parametrize(
    ("sizes", "n", "hits"),
    [
        ([100, 900], [10, 20], [8, 1]),
        ([100, 900], [10, 20], [10, 0]),
        ([500, 500], [8, 8], [4, 1]),
        ([100, 100], [3, 25], [2, 20]),
        ([50, 950], [25, 5], [20, 1]),
    ],
)
def test_the_limits_of_two_strata_are_those_of_a_search_over_all_compositions(sizes, n, hits):
    weights = np.array(sizes) / sum(sizes)
    per_answer = weights / n
    steps = np.maximum(1, np.rint(12 * per_answer / per_answer.max())).astype(int)
    found = estimate_share(counts_of(sizes, n, hits))
    lower = smallest_share_on_a_grid(weights, n, steps, np.dot(steps, hits), 0.025)
    misses = np.subtract(n, hits)
    upper = 1 - smallest_share_on_a_grid(weights, n, steps, np.dot(steps, misses), 0.025)
    # The grid ends above the true limit, by up to a step of each stratum.
    assert lower - 0.006 <= found.lower <= lower
    assert upper <= found.upper <= upper + 0.006


@pytest.mark.parametrize("seed", range(4))
def test_no_composition_that_is_tried_has_a_smaller_share(seed):
    rng = np.random.default_rng(seed)
    sizes = stratum_sizes(100_000)
    n = allocate_answers(100, sizes)
    true_shares = np.sort(rng.beta(0.3, 0.7, size=6))[::-1]
    hits = rng.binomial(n, true_shares)
    found = estimate_share(counts_of(sizes, n, hits))
    weights = sizes / sizes.sum()
    steps = (3, 3, 4, 6, 8, 12)
    threshold = int(np.dot(steps, hits))
    for _ in range(3000):
        shares = rng.beta(0.3, 1.0, size=6) * rng.uniform(size=6)
        probability, _ = tail_probability(shares, n, steps, threshold)
        if probability >= 0.025:
            assert weights @ shares >= found.lower


def exact_coverage(sizes, n, n_related) -> float:
    """Return how often the interval holds the truth, over all samples without replacement."""
    prior = sum(n_related) / sum(sizes)
    coverage = 0.0
    for hits in itertools.product(*(range(number + 1) for number in n)):
        probability = np.prod(stats.hypergeom.pmf(hits, sizes, n_related, n))
        if probability < 1e-12:
            continue
        found = estimate_share(counts_of(sizes, n, hits))
        if found.lower <= prior <= found.upper:
            coverage += probability
    return float(coverage)


@pytest.mark.parametrize("n_related", [(4, 0), (9, 1), (2, 6), (12, 30), (0, 3), (6, 20)], ids=str)
def test_the_interval_holds_the_truth_also_of_small_pools(n_related):
    assert exact_coverage(sizes=(12, 40), n=(4, 6), n_related=n_related) >= 0.95


def test_what_was_answered_in_full_is_known():
    found = estimate_share(counts_of([10, 30], [10, 30], [4, 6]))
    assert found == pytest.approx((0.25, 0.25, 0.25))
    half = estimate_share(counts_of([50, 50], [50, 0], [50, 0]))
    assert half == pytest.approx((0.75, 0.5, 1.0))


def test_more_answers_make_a_narrower_interval():
    few = estimate_share(counts_of([100, 900], [10, 20], [8, 2]))
    many = estimate_share(counts_of([100, 900], [50, 100], [40, 10]))
    assert many.value == pytest.approx(few.value)
    assert many.upper - many.lower < few.upper - few.lower


@pytest.mark.parametrize(
    ("sizes", "n", "hits"),
    [
        ([10], [11], [0]),
        ([10], [5], [6]),
        ([10], [5], [-1]),
        ([0], [0], [0]),
        ([-1, 3], [0, 1], [0, 1]),
    ],
)
def test_impossible_counts_are_refused(sizes, n, hits):
    with pytest.raises(ValueError, match="expected"):
        estimate_share(counts_of(sizes, n, hits))


def test_an_impossible_level_is_refused():
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1"):
        estimate_share(counts_of([10], [5], [1]), level=1.0)
