"""Class weights: Eq. 7, clipping, and the set W against a slow projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from pu_kd_pipeline.learning.class_weights import class_weights, teacher_class_mass, weight_vectors

NO_CLIP = (0.0, float("inf"))
masses = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mass_equals_the_slow_sum_of_softmaxes_and_adds_up_over_shards() -> None:
    logits = torch.randn(30, 4, generator=seeded())
    for temperature in (1.0, 3.0):
        slow = torch.zeros(4, dtype=torch.float64)
        for row in logits.double():
            exponentials = [np.exp(z / temperature) for z in row.tolist()]
            slow += torch.tensor(exponentials) / sum(exponentials)
        mass = teacher_class_mass(logits, temperature)
        assert mass.dtype == torch.float64
        torch.testing.assert_close(mass, slow, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            mass,
            teacher_class_mass(logits[:11], temperature)
            + teacher_class_mass(logits[11:], temperature),
        )
    assert mass.sum().item() == pytest.approx(30, abs=1e-5)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        teacher_class_mass(logits, 0.0)


@settings(deadline=None, max_examples=60)
@given(mass=masses)
def test_unclipped_weights_are_equation_7(mass: Tensor) -> None:
    inverse = [1 / y for y in mass.tolist()]
    expected = torch.tensor(
        [len(mass) * value / sum(inverse) for value in inverse], dtype=torch.float64
    )
    result = class_weights(mass, clip=NO_CLIP)
    torch.testing.assert_close(result.weights, expected)
    torch.testing.assert_close(result.raw, expected)
    assert not result.is_clipped.any()


@settings(deadline=None, max_examples=60)
@given(mass=masses, seed=st.integers(0, 99))
def test_weights_sum_to_k_favor_rare_classes_and_follow_a_permutation(
    mass: Tensor, seed: int
) -> None:
    result = class_weights(mass)
    assert result.weights.sum().item() == pytest.approx(len(mass))
    assert (result.weights[mass.argsort()].diff() <= 1e-12).all()
    assert result.weights.max() / result.weights.min() <= 100 * (1 + 1e-9)
    torch.testing.assert_close(result.is_clipped, (result.raw < 0.1) | (result.raw > 10))
    order = torch.randperm(len(mass), generator=seeded(seed))
    torch.testing.assert_close(class_weights(mass[order]).weights, result.weights[order])
    torch.testing.assert_close(class_weights(7 * mass).weights, result.weights)


def test_equal_masses_give_weights_of_one() -> None:
    torch.testing.assert_close(
        class_weights(torch.full((5,), 3.0)).weights, torch.ones(5, dtype=torch.float64)
    )


def test_an_absent_class_is_the_limit_of_a_vanishing_one_and_is_reported_as_clipped() -> None:
    present = [50.0, 20.0, 10.0] * 7
    absent, tiny = (
        class_weights(torch.tensor([y, *present], dtype=torch.float64)) for y in (0.0, 1e-12)
    )
    torch.testing.assert_close(absent.weights, tiny.weights)
    torch.testing.assert_close(absent.raw, torch.tensor([22.0] + [0.0] * 21, dtype=torch.float64))
    assert absent.is_clipped.all()
    assert absent.weights.isfinite().all()
    assert absent.weights[0] / absent.weights[1] == pytest.approx(100)


@pytest.mark.parametrize("mass", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_unusable_mass_is_refused(mass: list[float]) -> None:
    with pytest.raises(
        ValueError, match="class_mass must be a finite non-negative vector with a positive entry"
    ):
        class_weights(torch.tensor(mass))


def test_clip_that_excludes_the_mean_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 <= low <= 1 <= high, got \(2.0, 3.0\)"):
        class_weights(torch.ones(3), clip=(2.0, 3.0))


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
    torch.testing.assert_close(vectors[0], weights, rtol=0, atol=0)
    torch.testing.assert_close(
        vectors.sum(dim=1), torch.full((9,), float(len(mass)), dtype=torch.float64)
    )
    assert (vectors - weights).abs().max() <= epsilon + 1e-12
    assert (vectors >= 0).all()


def slow_projection(point: np.ndarray, weights: np.ndarray, epsilon: float) -> np.ndarray:
    """The nearest point of {|v - w| <= epsilon, v >= 0, sum v = K}, by a general-purpose solver."""
    result = minimize(
        lambda v: 0.5 * ((v - point) ** 2).sum(),
        weights,
        jac=lambda v: v - point,
        bounds=[(max(0.0, w - epsilon), w + epsilon) for w in weights],
        constraints={
            "type": "eq",
            "fun": lambda v: v.sum() - len(weights),
            "jac": lambda v: np.ones_like(v),
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return np.asarray(result.x)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0])
def test_projection_equals_a_slow_solver(epsilon: float) -> None:
    weights = class_weights(torch.tensor([900.0, 40.0, 300.0, 100.0, 20.0, 500.0])).weights
    vectors = weight_vectors(weights, n=6, epsilon=epsilon, mode="projected", generator=seeded(4))
    noise = (
        2 * torch.rand((6, 6), generator=seeded(4), dtype=torch.float64) - 1
    )  # the documented draw
    for vector, u in zip(vectors[1:], noise, strict=True):
        expected = slow_projection((weights + epsilon * u).numpy(), weights.numpy(), epsilon)
        np.testing.assert_allclose(vector.numpy(), expected, atol=2e-6)


def test_projected_vectors_go_both_ways_and_keep_the_dtype() -> None:
    weights = torch.ones(10)
    vectors = weight_vectors(weights, n=20, epsilon=0.1, mode="projected", generator=seeded())
    assert vectors.dtype == torch.float32
    assert ((vectors[1:] > weights).any(dim=1) & (vectors[1:] < weights).any(dim=1)).all()
    assert vectors[1:].std(dim=0).min() > 0.02


def test_released_vectors_only_go_upward() -> None:
    weights = class_weights(torch.tensor([5.0, 1.0, 2.0])).weights
    vectors = weight_vectors(weights, n=50, epsilon=0.1, mode="released", generator=seeded())
    torch.testing.assert_close(vectors[0], weights, rtol=0, atol=0)
    shift = vectors[1:] - weights
    assert (shift >= 0).all()
    assert (shift < 0.1 + 1e-12).all()
    assert shift.mean().item() == pytest.approx(0.05, abs=0.01)


def test_the_same_seed_gives_the_same_vectors_and_none_is_allowed() -> None:
    weights = torch.ones(4)
    first, second = (
        weight_vectors(weights, n=3, epsilon=0.2, mode="projected", generator=seeded(9))
        for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert weight_vectors(
        weights, n=0, epsilon=0.2, mode="projected", generator=seeded()
    ).shape == (1, 4)


def test_bad_weights_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to the number of classes, 2"):
        weight_vectors(
            torch.tensor([3.0, 4.0]), n=1, epsilon=0.1, mode="projected", generator=seeded()
        )
    with pytest.raises(ValueError, match="must be at least 0, got n=-1"):
        weight_vectors(torch.ones(2), n=-1, epsilon=0.1, mode="projected", generator=seeded())
    with pytest.raises(ValueError, match="mode must be 'projected' or 'released', got 'both'"):
        weight_vectors(torch.ones(2), n=1, epsilon=0.1, mode="both", generator=seeded())  # type: ignore[arg-type]
