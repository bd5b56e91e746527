"""Class weights: Eq. 7, clipping, and the set W against a slow projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning.class_weights import class_weights, teacher_class_mass, weight_vectors
from tests.learning.generators import seeded_generator

NO_CLIP = (0.0, float("inf"))


def as_vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


masses = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=12).map(as_vector)


def seeded(seed: int = 0) -> torch.Generator:
    return seeded_generator(seed)


# --- the mass of the classes


def slow_mass(logits: Tensor, temperature: float) -> Tensor:
    mass = torch.zeros(logits.shape[1], dtype=torch.float64)
    for row in logits.tolist():
        powers = [math.exp(z / temperature) for z in row]
        mass += as_vector(powers) / sum(powers)
    return mass


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_mass_equals_the_slow_sum_of_softmaxes(temperature: float) -> None:
    logits = torch.randn(30, 4, generator=seeded())
    mass = teacher_class_mass(logits, temperature)
    assert mass.dtype == torch.float64
    assert mass.sum().item() == pytest.approx(30, abs=1e-5)
    assert_close(mass, slow_mass(logits, temperature), rtol=1e-6, atol=1e-6)


def test_mass_adds_up_over_shards() -> None:
    logits = torch.randn(30, 4, generator=seeded())
    # Of unequal size, as the last shard of a store is.
    of_shards = teacher_class_mass(logits[:11]) + teacher_class_mass(logits[11:])

    assert_close(teacher_class_mass(logits), of_shards)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        teacher_class_mass(torch.zeros(2, 4), 0.0)


# --- the weights of the classes


@settings(deadline=None, max_examples=60)
@given(mass=masses)
def test_unclipped_weights_are_equation_7(mass: Tensor) -> None:
    inverse = [1 / y for y in mass.tolist()]
    expected = as_vector([len(mass) * value / sum(inverse) for value in inverse])
    result = class_weights(mass, clip=NO_CLIP)

    assert_close(result.weights, expected)
    assert_close(result.raw, expected)
    assert not result.is_clipped.any()


@settings(deadline=None, max_examples=60)
@given(mass=masses)
def test_weights_sum_to_k_and_favor_rare_classes_within_the_clip(mass: Tensor) -> None:
    result = class_weights(mass)
    assert result.weights.sum().item() == pytest.approx(len(mass))

    from_rare_to_frequent = result.weights[mass.argsort()]
    assert (from_rare_to_frequent.diff() <= 1e-12).all()

    # The default clip is 0.1 to 10.
    largest_ratio = result.weights.max() / result.weights.min()
    assert largest_ratio <= 100 * (1 + 1e-9)

    is_outside = (result.raw < 0.1) | (result.raw > 10)
    assert torch.equal(result.is_clipped, is_outside)


@settings(deadline=None, max_examples=60)
@given(mass=masses, seed=st.integers(0, 99))
def test_weights_follow_a_permutation_and_not_the_number_of_samples(
    mass: Tensor, seed: int
) -> None:
    weights = class_weights(mass).weights
    order = torch.randperm(len(mass), generator=seeded(seed))
    assert_close(class_weights(mass[order]).weights, weights[order])
    assert_close(class_weights(7 * mass).weights, weights)


def test_equal_masses_give_weights_of_one() -> None:
    weights = class_weights(torch.full((5,), 3.0)).weights
    assert weights.tolist() == pytest.approx([1.0] * 5)


def test_an_absent_class_is_the_limit_of_a_vanishing_one_and_is_reported_as_clipped() -> None:
    present = [50.0, 20.0, 10.0] * 7
    absent = class_weights(as_vector([0.0, *present]))
    # So small that all other weights are clipped as well.
    vanishing = class_weights(as_vector([1e-12, *present]))

    assert_close(absent.weights, vanishing.weights)
    assert absent.raw.tolist() == [22.0] + [0.0] * 21
    assert absent.is_clipped.all()
    assert absent.weights.isfinite().all()
    assert absent.weights[0] / absent.weights[1] == pytest.approx(100)


@pytest.mark.parametrize("mass", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_unusable_mass_is_refused(mass: list[float]) -> None:
    message = "class_mass must be a finite non-negative vector with a positive entry"
    with pytest.raises(ValueError, match=message):
        class_weights(torch.tensor(mass))


def test_clip_that_excludes_the_mean_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 <= low <= 1 <= high, got \(2.0, 3.0\)"):
        class_weights(torch.ones(3), clip=(2.0, 3.0))


# --- the perturbed vectors


@settings(deadline=None, max_examples=60)
@given(mass=masses, epsilon=st.floats(0, 3), seed=st.integers(0, 99))
def test_projected_vectors_sum_to_k_within_epsilon_and_are_not_negative(
    mass: Tensor, epsilon: float, seed: int
) -> None:
    weights = class_weights(mass).weights
    vectors = weight_vectors(
        weights, n=8, epsilon=epsilon, mode="projected", generator=seeded(seed)
    )

    assert vectors.shape == (9, len(mass))
    assert torch.equal(vectors[0], weights)
    assert vectors.sum(dim=1).tolist() == pytest.approx([len(mass)] * 9)
    assert (vectors - weights).abs().max() <= epsilon + 1e-12
    assert (vectors >= 0).all()


def slow_projection(point: np.ndarray, weights: np.ndarray, epsilon: float) -> np.ndarray:
    """The nearest point of {|v - w| <= epsilon, v >= 0, sum v = K}, by a general-purpose solver."""
    sum_is_k = {
        "type": "eq",
        "fun": lambda v: v.sum() - len(weights),
        "jac": np.ones_like,
    }
    result = minimize(
        fun=lambda v: 0.5 * ((v - point) ** 2).sum(),
        x0=weights,
        jac=lambda v: v - point,
        bounds=[(max(0.0, w - epsilon), w + epsilon) for w in weights],
        constraints=sum_is_k,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return np.asarray(result.x)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0])
def test_projection_equals_a_slow_solver(epsilon: float) -> None:
    weights = class_weights(torch.tensor([900.0, 40.0, 300.0, 100.0, 20.0, 500.0])).weights
    vectors = weight_vectors(weights, n=6, epsilon=epsilon, mode="projected", generator=seeded(4))
    # The documented draw, u ~ U(-1, 1)^K.
    noise = 2 * torch.rand((6, 6), generator=seeded(4), dtype=torch.float64) - 1
    for vector, u in zip(vectors[1:], noise, strict=True):
        point = weights + epsilon * u
        expected = slow_projection(point.numpy(), weights.numpy(), epsilon)
        assert_allclose(vector.numpy(), expected, atol=2e-6)


def test_projected_vectors_go_both_ways_and_keep_the_dtype() -> None:
    weights = torch.ones(10)
    vectors = weight_vectors(weights, n=20, epsilon=0.1, mode="projected", generator=seeded())
    assert vectors.dtype == torch.float32

    perturbed = vectors[1:]
    assert (perturbed > weights).any(dim=1).all()
    assert (perturbed < weights).any(dim=1).all()
    # In every class, not only in a few.
    assert perturbed.std(dim=0).min() > 0.02


def test_released_vectors_only_go_upward() -> None:
    weights = class_weights(torch.tensor([5.0, 1.0, 2.0])).weights
    vectors = weight_vectors(weights, n=50, epsilon=0.1, mode="released", generator=seeded())
    assert torch.equal(vectors[0], weights)

    shift = vectors[1:] - weights
    assert (shift >= 0).all()
    assert (shift < 0.1 + 1e-12).all()
    # The mean of U[0, 1) is a half.
    assert shift.mean().item() == pytest.approx(0.05, abs=0.01)


def test_the_same_seed_gives_the_same_vectors() -> None:
    weights = torch.ones(4)
    first = weight_vectors(weights, n=3, epsilon=0.2, mode="projected", generator=seeded(9))
    second = weight_vectors(weights, n=3, epsilon=0.2, mode="projected", generator=seeded(9))

    assert torch.equal(first, second)


def test_without_perturbed_vectors_only_the_weights_remain() -> None:
    vectors = weight_vectors(torch.ones(4), n=0, epsilon=0.2, mode="projected", generator=seeded())
    assert vectors.tolist() == [[1.0] * 4]


@pytest.mark.parametrize(
    ("weights", "n", "mode", "message"),
    [
        ([3.0, 4.0], 1, "projected", "sum to the number of classes, 2"),
        ([1.0, 1.0], -1, "projected", "must be at least 0, got n=-1"),
        ([1.0, 1.0], 1, "both", "mode must be 'projected' or 'released', got 'both'"),
    ],
)
def test_bad_weights_and_options_are_refused(
    weights: list[float], n: int, mode: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        weight_vectors(
            torch.tensor(weights),
            n=n,
            epsilon=0.1,
            mode=mode,  # type: ignore[arg-type]
            generator=seeded(),
        )
