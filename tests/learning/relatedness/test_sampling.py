"""Sampling by relatedness: probabilities, their effective sample size, and the batches drawn."""

from __future__ import annotations

import itertools
import math

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
    probabilities = sampling_probabilities(sums, temperature=temperature, floor=floor)
    assert probabilities.dtype == torch.float64
    assert probabilities.sum().item() == pytest.approx(1)
    assert (probabilities >= floor / len(sums)).all()

    by_sum = probabilities[sums.argsort()]
    assert (by_sum.diff() <= 0).all()

    # From one image that gets all the draws to n that get the same.
    effective_size = effective_sample_size(probabilities)
    assert 1 - 1e-9 <= effective_size <= len(sums) * (1 + 1e-9)


@given(sums=pools, scale=st.floats(0.1, 10), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_probabilities_follow_the_order_of_the_pool_and_not_the_units_of_the_sum(
    sums: Tensor, scale: float, shift: float, seed: int
) -> None:
    sums = sums.round()  # so that the change of units cannot turn equal sums into different ones
    probabilities = sampling_probabilities(sums, temperature=0.5, floor=0.1)
    moved = sampling_probabilities(scale * sums + shift, temperature=0.5, floor=0.1)

    assert_close(moved, probabilities, rtol=1e-5, atol=1e-9)

    order = torch.randperm(len(sums), generator=seeded_generator(seed))
    permuted = sampling_probabilities(sums[order], temperature=0.5, floor=0.1)

    assert_close(permuted, probabilities[order], rtol=1e-9, atol=1e-12)


def test_probabilities_are_the_slow_ones():
    sums = [-3.0, 1.0, 4.0, -60.0, 12.0]
    mean = sum(sums) / 5
    std = math.sqrt(sum((s - mean) ** 2 for s in sums) / 5)
    powers = [math.exp(-(s - mean) / std / 0.5) for s in sums]
    expected = [0.9 * power / sum(powers) + 0.1 / 5 for power in powers]
    probabilities = sampling_probabilities(torch.tensor(sums), temperature=0.5, floor=0.1)

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
    even = sampling_probabilities(torch.tensor(sums), temperature=temperature, floor=floor)
    assert even.tolist() == pytest.approx([0.25] * 4, rel=1e-6)
    assert effective_sample_size(even) == pytest.approx(4)


def test_at_the_lowest_temperature_only_the_floor_reaches_all_but_the_best():
    sums = torch.tensor([5.0, -2.0, 3.0, 4.0])
    # 1e-320 is subnormal: dividing by it overflows to infinity.
    coldest = sampling_probabilities(sums, temperature=1e-320, floor=0.2)

    assert coldest.tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


def test_one_image_far_from_a_large_pool_neither_overflows_nor_excludes_the_others():
    sums = torch.zeros(1_000_000)
    sums[7] = -1e30
    probabilities = sampling_probabilities(sums, temperature=0.5, floor=0.1)

    assert probabilities[7].item() == pytest.approx(0.9, abs=1e-6)
    assert probabilities.min().item() == pytest.approx(1e-7)

    effective_size = effective_sample_size(probabilities)
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


@settings(max_examples=30)
@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 10_000),
)
def test_batches_hold_each_image_as_often_as_its_probability(weights: list[int], seed: int) -> None:
    probabilities = as_vector(weights) / sum(weights)
    batches = preferential_batches(probabilities, 4_000, seeded_generator(seed))
    drawn = torch.cat(list(itertools.islice(batches, 2)))

    assert drawn.dtype == torch.int64

    shares = drawn.bincount(minlength=len(weights)) / len(drawn)
    assert len(shares) == len(weights)
    assert (shares[probabilities == 0] == 0).all()

    # Six standard errors: no seed may fail by chance.
    standard_errors = (probabilities * (1 - probabilities) / len(drawn)).sqrt()
    deviations = (shares - probabilities).abs()

    assert (deviations <= 6 * standard_errors + 1e-12).all()


def test_batches_repeat_with_the_generator():
    probabilities = torch.rand(20, generator=seeded_generator())
    first = preferential_batches(probabilities, 6, seeded_generator(1))
    second = preferential_batches(probabilities, 6, seeded_generator(1))

    for _ in range(3):
        assert torch.equal(next(first), next(second))

    batch = next(first)
    assert batch.shape == (6,)
    assert not torch.equal(batch, next(first))


def test_batches_reach_both_ends_of_a_pool_too_large_for_multinomial():
    n = 2**24 + 5  # torch.multinomial takes 2^24 at most
    probabilities = torch.full((n,), 1.0 / (4 * n))
    probabilities[0] = 0.25
    probabilities[-1] = 0.5
    drawn = next(preferential_batches(probabilities, 2_000, seeded_generator(1)))
    first_share = (drawn == 0).double().mean().item()
    last_share = (drawn == n - 1).double().mean().item()

    assert first_share == pytest.approx(0.25, abs=0.05)
    assert last_share == pytest.approx(0.5, abs=0.05)


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
