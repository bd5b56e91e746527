"""Sampling by relatedness: probabilities, their effective sample size, and the batches drawn."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning.relatedness.sampling import (
    effective_sample_size,
    preferential_batches,
    sampling_probabilities,
)
from tests.learning.generators import seeded_generator


def as_vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


pools = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).map(as_vector)


# --- probabilities


@given(sums=pools, temperature=st.floats(1e-3, 1e3), floor=st.floats(0, 1))
def test_probabilities_sum_to_one_keep_the_floor_and_fall_with_the_sum(
    sums: Tensor, temperature: float, floor: float
) -> None:
    n = len(sums)
    probabilities = sampling_probabilities(sums, temperature=temperature, floor=floor)
    total = probabilities.sum().item()
    by_sum = probabilities[sums.argsort()]
    effective_size = effective_sample_size(probabilities)

    assert probabilities.dtype == torch.float64
    assert total == pytest.approx(1)
    assert (probabilities >= floor / n).all()
    assert (by_sum.diff() <= 0).all()
    # From one image that gets all the draws to n that get the same.
    assert 1 - 1e-9 <= effective_size <= n * (1 + 1e-9)


@given(sums=pools, scale=st.floats(0.1, 10), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_probabilities_follow_the_order_of_the_pool_and_not_the_units_of_the_sum(
    sums: Tensor, scale: float, shift: float, seed: int
) -> None:
    options = {"temperature": 0.5, "floor": 0.1}
    sums = sums.round()  # so that the change of units cannot turn equal sums into different ones
    probabilities = sampling_probabilities(sums, **options)

    in_other_units = scale * sums + shift
    moved = sampling_probabilities(in_other_units, **options)

    assert_close(moved, probabilities, rtol=1e-5, atol=1e-9)

    order = torch.randperm(len(sums), generator=seeded_generator(seed))
    permuted = sampling_probabilities(sums[order], **options)

    assert_close(permuted, probabilities[order], rtol=1e-9, atol=1e-12)


def slow_probabilities(sums: list[float], temperature: float, floor: float) -> list[float]:
    """Return the softmax of the negative z-scores, mixed with even probabilities."""
    mean = statistics.fmean(sums)
    std = statistics.pstdev(sums)
    powers = []
    for s in sums:
        z = (s - mean) / std
        # Low sums are the related images, hence the sign.
        powers.append(math.exp(-z / temperature))

    total = sum(powers)
    even = 1 / len(sums)
    return [(1 - floor) * power / total + floor * even for power in powers]


def test_probabilities_are_the_slow_ones():
    sums = [-3.0, 1.0, 4.0, -60.0, 12.0]
    expected = slow_probabilities(sums, temperature=0.5, floor=0.1)
    pool = torch.tensor(sums)

    probabilities = sampling_probabilities(pool, temperature=0.5, floor=0.1)

    assert probabilities.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sums", "temperature", "floor"),
    [
        ([5.0, -2.0, 3.0, 4.0], 1e9, 0.0),
        ([5.0, -2.0, 3.0, 4.0], 0.5, 1.0),
        ([0.3, 0.3, 0.3, 0.3], 0.5, 0.0),
    ],
    ids=["hot", "floor of one", "equal sums"],
)
def test_limits_in_which_a_pool_is_sampled_evenly(
    sums: list[float], temperature: float, floor: float
) -> None:
    pool = torch.tensor(sums)
    even = sampling_probabilities(pool, temperature=temperature, floor=floor)
    effective_size = effective_sample_size(even)

    assert even.tolist() == pytest.approx([0.25] * 4, rel=1e-6)
    assert effective_size == pytest.approx(4)


def test_at_the_lowest_temperature_only_the_floor_reaches_all_but_the_best():
    sums = torch.tensor([5.0, -2.0, 3.0, 4.0])
    # 1e-320 is subnormal: dividing by it overflows to infinity.
    coldest = sampling_probabilities(sums, temperature=1e-320, floor=0.2)

    assert coldest.tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


def test_one_image_far_from_a_large_pool_neither_overflows_nor_excludes_the_others():
    sums = torch.zeros(1_000_000)
    sums[7] = -1e30

    probabilities = sampling_probabilities(sums, temperature=0.5, floor=0.1)
    outlier = probabilities[7].item()
    lowest = probabilities.min().item()
    effective_size = effective_sample_size(probabilities)

    # All but the floor goes to the one image; the floor is shared by a million.
    assert outlier == pytest.approx(0.9, abs=1e-6)
    assert lowest == pytest.approx(1e-7)
    # 1 / sum of squares, of which 0.9^2 is nearly all.
    assert effective_size == pytest.approx(1 / 0.81, rel=1e-3)


@pytest.mark.parametrize(
    ("sums", "options", "message"),
    [
        ([], {}, r"non-empty vector of finite values, got shape \(0,\)"),
        ([[1.0]], {}, r"non-empty vector of finite values, got shape \(1, 1\)"),
        ([1.0, math.nan], {}, "non-empty vector of finite values"),
        ([1.0], {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ([1.0], {"temperature": math.nan}, "temperature must be positive, got nan"),
        ([1.0], {"floor": -0.1}, r"floor must lie in \[0, 1\], got -0.1"),
        ([1.0], {"floor": 1.5}, r"floor must lie in \[0, 1\], got 1.5"),
    ],
)
def test_unusable_pools_temperatures_and_floors_are_refused(
    sums: list[float], options: dict[str, float], message: str
) -> None:
    options = {"temperature": 0.5, "floor": 0.1, **options}
    with pytest.raises(ValueError, match=message):
        sampling_probabilities(torch.tensor(sums), **options)


# --- batches


image_weights = st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any)


@settings(max_examples=30)
@given(weights=image_weights, seed=st.integers(0, 10_000))
def test_batches_hold_each_image_as_often_as_its_probability(weights: list[int], seed: int) -> None:
    n_images = len(weights)
    probabilities = as_vector(weights) / sum(weights)

    batches = preferential_batches(probabilities, 4_000, seeded_generator(seed))
    drawn = torch.cat([next(batches), next(batches)])
    n_drawn = len(drawn)
    counts = drawn.bincount(minlength=n_images)
    shares = counts / n_drawn

    assert drawn.dtype == torch.int64
    assert len(shares) == n_images
    assert (shares[probabilities == 0] == 0).all()

    # Six standard errors: no seed may fail by chance.
    variances = probabilities * (1 - probabilities) / n_drawn
    standard_errors = variances.sqrt()
    deviations = (shares - probabilities).abs()

    assert (deviations <= 6 * standard_errors + 1e-12).all()


def test_batches_repeat_with_the_generator():
    probabilities = torch.rand(20, generator=seeded_generator())
    first = preferential_batches(probabilities, 6, seeded_generator(1))
    second = preferential_batches(probabilities, 6, seeded_generator(1))

    for _ in range(3):
        assert torch.equal(next(first), next(second))

    batch = next(first)
    next_batch = next(first)

    assert batch.shape == (6,)
    assert not torch.equal(batch, next_batch)


def test_batches_reach_both_ends_of_a_pool_too_large_for_multinomial():
    n = 2**24 + 5  # torch.multinomial takes 2^24 at most
    last = n - 1
    probabilities = torch.full((n,), 1.0 / (4 * n))
    probabilities[0] = 0.25
    probabilities[last] = 0.5

    batches = preferential_batches(probabilities, 2_000, seeded_generator(1))
    drawn = next(batches)
    is_first = drawn == 0
    is_last = drawn == last

    # 0.05 is five standard errors of 2,000 draws.
    assert is_first.double().mean().item() == pytest.approx(0.25, abs=0.05)
    assert is_last.double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "values", [[], [0.0, 0.0], [0.5, -0.5], [math.nan, 1.0], [math.inf, 1.0], [[0.5, 0.5]]]
)
def test_unusable_probabilities_are_refused_at_the_call(values: list[float]) -> None:
    # Not at the first batch: nothing is drawn here.
    message = "non-empty vector of finite values, none negative and not all 0"
    with pytest.raises(ValueError, match=message):
        preferential_batches(torch.tensor(values), 4, torch.Generator())


def test_an_empty_batch_is_refused_at_the_call():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        preferential_batches(torch.ones(3), 0, torch.Generator())
