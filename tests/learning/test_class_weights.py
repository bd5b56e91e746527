"""Class weights: Eq. 7, clipping, and the set W against a slow projection."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning.class_weights import (
    class_weights,
    log_class_prior,
    mean_sample_weight,
    relative_weight_vectors,
    shrunk_class_weights,
    smoothed_mass,
    teacher_class_counts,
    teacher_class_mass,
    weight_vectors,
    with_mean_sample_weight_one,
)
from tests.learning.generators import seeded_generator

NO_CLIP = (0.0, float("inf"))


def as_vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


masses = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=12).map(as_vector)


# --- the mass of the classes


def slow_mass(logits: Tensor, temperature: float) -> Tensor:
    """Sum of the softmaxes, one sample at a time."""
    mass = torch.zeros(logits.shape[1], dtype=torch.float64)
    for row in logits.tolist():
        powers = [math.exp(z / temperature) for z in row]
        total = sum(powers)
        mass += as_vector(powers) / total
    return mass


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_mass_equals_the_slow_sum_of_softmaxes(temperature: float) -> None:
    logits = torch.randn(30, 4, generator=seeded_generator())
    mass = teacher_class_mass(logits, temperature)
    expected = slow_mass(logits, temperature)
    total = mass.sum().item()

    assert mass.dtype == torch.float64
    # Every sample has a mass of one.
    assert total == pytest.approx(30, abs=1e-5)
    assert_close(mass, expected, rtol=1e-6, atol=1e-6)


def test_mass_adds_up_over_shards() -> None:
    logits = torch.randn(30, 4, generator=seeded_generator())
    # Of unequal size, as the last shard of a store is.
    of_first_shard = teacher_class_mass(logits[:11])
    of_last_shard = teacher_class_mass(logits[11:])
    of_all = teacher_class_mass(logits)

    assert_close(of_all, of_first_shard + of_last_shard)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        teacher_class_mass(torch.zeros(2, 4), 0.0)


# --- the weights of the classes


def slow_weights(mass: list[float]) -> Tensor:
    """Eq. 7: weights inverse to the mass that sum to the number of classes."""
    inverse = [1 / y for y in mass]
    total = sum(inverse)
    weights = [len(mass) * value / total for value in inverse]
    return as_vector(weights)


@settings(deadline=None, max_examples=60)
@given(mass=masses)
def test_unclipped_weights_are_equation_7(mass: Tensor) -> None:
    expected = slow_weights(mass.tolist())
    result = class_weights(mass, clip=NO_CLIP)

    assert_close(result.weights, expected)
    assert_close(result.raw, expected)
    assert not result.is_clipped.any()


@settings(deadline=None, max_examples=60)
@given(mass=masses)
def test_weights_sum_to_k_and_favor_rare_classes_within_the_clip(mass: Tensor) -> None:
    result = class_weights(mass)
    weights = result.weights

    assert weights.sum().item() == pytest.approx(len(mass))

    from_rare_to_frequent = weights[mass.argsort()]
    assert (from_rare_to_frequent.diff() <= 1e-12).all()

    # The default clip is 0.1 to 10.
    largest_ratio = weights.max() / weights.min()
    assert largest_ratio <= 100 * (1 + 1e-9)

    is_outside = (result.raw < 0.1) | (result.raw > 10)
    assert torch.equal(result.is_clipped, is_outside)


@settings(deadline=None, max_examples=60)
@given(mass=masses, seed=st.integers(0, 99))
def test_weights_follow_a_permutation_and_not_the_number_of_samples(
    mass: Tensor, seed: int
) -> None:
    weights = class_weights(mass).weights

    order = torch.randperm(len(mass), generator=seeded_generator(seed))
    of_permuted = class_weights(mass[order])

    assert_close(of_permuted.weights, weights[order])

    of_seven_pools = class_weights(7 * mass)
    assert_close(of_seven_pools.weights, weights)


def test_equal_masses_give_weights_of_one() -> None:
    mass = torch.full((5,), 3.0)
    weights = class_weights(mass).weights

    assert weights.tolist() == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("mass", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_unusable_mass_is_refused(mass: list[float]) -> None:
    unusable = torch.tensor(mass)
    message = "class_mass must be a finite non-negative vector with a positive entry"

    with pytest.raises(ValueError, match=message):
        class_weights(unusable)


def test_clip_that_excludes_the_mean_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 <= low <= 1 <= high, got \(2.0, 3.0\)"):
        class_weights(torch.ones(3), clip=(2.0, 3.0))


# --- the perturbed vectors


def draw_vectors(weights: Tensor, seed: int = 0, **options: Any) -> Tensor:
    return weight_vectors(weights, generator=seeded_generator(seed), **options)


@settings(deadline=None, max_examples=60)
@given(mass=masses, epsilon=st.floats(0, 3), seed=st.integers(0, 99))
def test_projected_vectors_sum_to_k_within_epsilon_and_are_not_negative(
    mass: Tensor, epsilon: float, seed: int
) -> None:
    n_classes = len(mass)
    weights = class_weights(mass).weights
    vectors = draw_vectors(weights, seed, n=8, epsilon=epsilon, perturbation="projected")
    sums = vectors.sum(dim=1).tolist()
    changes = (vectors - weights).abs()

    # The weights themselves come first.
    assert vectors.shape == (9, n_classes)
    assert torch.equal(vectors[0], weights)
    assert sums == pytest.approx([n_classes] * 9)
    assert changes.max() <= epsilon + 1e-12
    assert (vectors >= 0).all()


def slow_projection(point: np.ndarray, weights: np.ndarray, epsilon: float) -> np.ndarray:
    """The nearest point of {|v - w| <= epsilon, v >= 0, sum v = K}, by a general-purpose solver."""
    sum_is_k = {
        "type": "eq",
        "fun": lambda v: v.sum() - len(weights),
        "jac": np.ones_like,
    }
    bounds = [(max(0.0, w - epsilon), w + epsilon) for w in weights]
    result = minimize(
        fun=lambda v: 0.5 * ((v - point) ** 2).sum(),
        x0=weights,
        jac=lambda v: v - point,
        bounds=bounds,
        constraints=sum_is_k,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return np.asarray(result.x)


def draw_noise(n: int, n_classes: int, seed: int) -> Tensor:
    """The documented draw of the perturbations, u ~ U(-1, 1)^K."""
    generator = seeded_generator(seed)
    uniform = torch.rand((n, n_classes), generator=generator, dtype=torch.float64)
    return 2 * uniform - 1


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0])
def test_projection_equals_a_slow_solver(epsilon: float) -> None:
    mass = torch.tensor([900.0, 40.0, 300.0, 100.0, 20.0, 500.0])
    weights = class_weights(mass).weights
    noise = draw_noise(6, 6, seed=4)
    points = weights + epsilon * noise

    vectors = draw_vectors(weights, seed=4, n=6, epsilon=epsilon, perturbation="projected")
    projected = vectors[1:]

    for vector, point in zip(projected.numpy(), points.numpy(), strict=True):
        expected = slow_projection(point, weights.numpy(), epsilon)
        # As far as the solver comes.
        assert_allclose(vector, expected, atol=2e-6)


def test_an_absent_class_is_the_limit_of_a_vanishing_one() -> None:
    present = [50.0, 20.0, 10.0] * 7
    absent = class_weights(as_vector([0.0, *present]))
    # So small that all other weights are clipped as well.
    vanishing = class_weights(as_vector([1e-12, *present]))
    absent_weight, present_weight = absent.weights[:2].tolist()

    assert_close(absent.weights, vanishing.weights)
    assert absent.weights.isfinite().all()
    # The default clip is 0.1 to 10.
    assert absent_weight / present_weight == pytest.approx(100)


def test_an_absent_class_is_reported_as_clipped() -> None:
    present = [50.0, 20.0, 10.0] * 7
    result = class_weights(as_vector([0.0, *present]))
    # In the limit the absent class takes all of K = 22.
    expected = [22.0] + [0.0] * 21

    assert result.raw.tolist() == expected
    assert result.is_clipped.all()


def test_projected_vectors_go_both_ways_and_keep_the_dtype() -> None:
    weights = torch.ones(10)
    vectors = draw_vectors(weights, n=20, epsilon=0.1, perturbation="projected")
    perturbed = vectors[1:]
    is_higher = perturbed > weights
    is_lower = perturbed < weights

    assert vectors.dtype == torch.float32
    assert is_higher.any(dim=1).all()
    assert is_lower.any(dim=1).all()
    # In every class, not only in a few.
    assert perturbed.std(dim=0).min() > 0.02


def test_released_vectors_only_go_upward() -> None:
    mass = torch.tensor([5.0, 1.0, 2.0])
    weights = class_weights(mass).weights
    vectors = draw_vectors(weights, n=50, epsilon=0.1, perturbation="released")
    shift = vectors[1:] - weights
    mean_shift = shift.mean().item()

    assert torch.equal(vectors[0], weights)
    assert (shift >= 0).all()
    assert (shift < 0.1 + 1e-12).all()
    # The mean of U[0, 1) is a half.
    assert mean_shift == pytest.approx(0.05, abs=0.01)


def test_the_same_seed_gives_the_same_vectors() -> None:
    weights = torch.ones(4)
    first = draw_vectors(weights, seed=9, n=3, epsilon=0.2, perturbation="projected")
    second = draw_vectors(weights, seed=9, n=3, epsilon=0.2, perturbation="projected")

    assert torch.equal(first, second)


def test_without_perturbed_vectors_only_the_weights_remain() -> None:
    weights = torch.ones(4)
    vectors = draw_vectors(weights, n=0, epsilon=0.2, perturbation="projected")

    assert vectors.tolist() == [[1.0] * 4]


@pytest.mark.parametrize(
    ("weights", "n", "perturbation", "message"),
    [
        ([3.0, -1.0], 1, "projected", "must be non-negative with a positive sum"),
        ([0.0, 0.0], 1, "projected", "must be non-negative with a positive sum"),
        ([1.0, 1.0], -1, "projected", "must be at least 0, got n=-1"),
        ([1.0, 1.0], 1, "both", "perturbation must be 'projected' or 'released', got 'both'"),
    ],
)
def test_bad_weights_and_options_are_refused(
    weights: list[float], n: int, perturbation: str, message: str
) -> None:
    weights_tensor = torch.tensor(weights)
    with pytest.raises(ValueError, match=message):
        draw_vectors(weights_tensor, n=n, epsilon=0.1, perturbation=perturbation)


# --- counts of draws


def test_an_image_that_is_drawn_three_times_counts_as_three() -> None:
    logits = torch.randn(6, 4, generator=seeded_generator())
    draws = as_vector([1, 3, 2, 1, 0, 2])
    repeated = logits.repeat_interleave(draws.long(), dim=0)

    assert_close(teacher_class_mass(logits, draws=draws), teacher_class_mass(repeated))
    assert_close(teacher_class_counts(logits, draws), teacher_class_counts(repeated))
    assert teacher_class_counts(repeated).sum() == 9


# --- weights that shrink toward one


def slow_shrunk(
    mass: list[float], counts: list[float], smoothing: float, clip: tuple[float, float]
) -> list[float]:
    """The documented formula, class by class."""
    prior = smoothing * sum(mass) / len(mass)
    weights = [1 / math.sqrt(y + prior) for y in mass]
    for bounds in (clip, None):
        weighted = [c * w for c, w in zip(counts, weights, strict=True)]
        mean = sum(weighted) / sum(counts)
        weights = [w / mean for w in weights]
        if bounds is not None:
            low, high = bounds
            weights = [min(max(w, low), high) for w in weights]
    return weights


@settings(deadline=None, max_examples=60)
@given(mass=masses, smoothing=st.floats(0, 5), seed=st.integers(0, 99))
def test_shrunk_weights_are_the_formula_and_keep_the_mean_weight_of_a_sample(
    mass: Tensor, smoothing: float, seed: int
) -> None:
    counts = mass * (0.5 + torch.rand(len(mass), generator=seeded_generator(seed)))
    result = shrunk_class_weights(mass, counts, smoothing=smoothing, clip=(0.5, 2.0))
    expected = slow_shrunk(mass.tolist(), counts.tolist(), smoothing, (0.5, 2.0))

    assert_close(result.weights, as_vector(expected))
    assert mean_sample_weight(result.weights, counts) == pytest.approx(1)
    # Rare classes never count less than frequent ones, and at most four times as much.
    from_rare_to_frequent = result.weights[mass.argsort()]
    assert (from_rare_to_frequent.diff() <= 1e-12).all()
    assert result.weights.max() <= 4 * result.weights.min() * (1 + 1e-9)
    is_outside = (result.raw < 0.5) | (result.raw > 2.0)
    assert torch.equal(result.is_clipped, is_outside)


def test_smoothing_takes_weights_from_the_root_to_one() -> None:
    mass = as_vector([900.0, 100.0])
    no_clip = (1e-9, 1e9)

    def ratio(smoothing: float) -> float:
        result = shrunk_class_weights(mass, mass, smoothing=smoothing, clip=no_clip)
        return float(result.weights[1] / result.weights[0])

    assert ratio(0.0) == pytest.approx(3)
    assert 1 < ratio(1.0) < 3
    assert ratio(1e6) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_a_class_that_nobody_draws_has_a_finite_weight(smoothing: float) -> None:
    mass = as_vector([0.0, 30.0, 10.0])
    result = shrunk_class_weights(mass, mass, smoothing=smoothing, clip=(0.5, 2.0))
    assert result.weights.isfinite().all()
    assert result.weights.argmax() == 0


def test_the_weights_of_equation_7_change_the_mean_weight_of_a_sample() -> None:
    mass = as_vector([900.0, 50.0, 50.0])
    weights = class_weights(mass, clip=NO_CLIP).weights
    # Every class has the same part of K^2 / sum_j (n / y_j), which is far below one: a smaller
    # learning rate.
    assert mean_sample_weight(weights, mass) == pytest.approx(9 / (1000 * (1 / 900 + 2 / 50)))
    scaled = with_mean_sample_weight_one(weights, mass)
    assert mean_sample_weight(scaled, mass) == pytest.approx(1)
    assert_close(scaled / scaled[0], weights / weights[0])


def test_negative_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match="smoothing must be at least 0"):
        smoothed_mass(torch.ones(3), -1.0)


@settings(deadline=None, max_examples=30)
@given(mass=masses, smoothing=st.floats(0, 5))
def test_the_log_prior_is_that_of_smoothed_shares(mass: Tensor, smoothing: float) -> None:
    prior = log_class_prior(mass, smoothing)
    shares = prior.exp()
    uniform = 1 / len(mass)
    observed = mass / mass.sum()

    assert shares.sum().item() == pytest.approx(1)
    # A mixture of the observed shares and equal ones.
    expected = (observed + smoothing * uniform) / (1 + smoothing)
    assert_close(shares, expected)


# --- relative perturbations


@settings(deadline=None, max_examples=60)
@given(mass=masses, epsilon=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_relative_vectors_keep_the_mean_weight_of_a_sample_within_epsilon(
    mass: Tensor, epsilon: float, seed: int
) -> None:
    weights = class_weights(mass).weights
    generator = seeded_generator(seed)
    vectors = relative_weight_vectors(weights, mass, n=8, epsilon=epsilon, generator=generator)
    ratios = vectors / weights
    means = [mean_sample_weight(vector, mass) for vector in vectors]

    assert vectors.shape == (9, len(mass))
    assert torch.equal(vectors[0], weights)
    assert means == pytest.approx([means[0]] * 9)
    assert (ratios - 1).abs().max() <= epsilon + 1e-12
    assert (vectors > 0).all()


def test_relative_vectors_move_every_class_by_the_same_share() -> None:
    # Absolute changes of 0.1 would be half of the first weight and a fiftieth of the last.
    weights = as_vector([0.2, 1.0, 5.0])
    counts = 1 / weights
    vectors = relative_weight_vectors(
        weights, counts, n=500, epsilon=0.5, generator=seeded_generator()
    )
    spread = (vectors / weights)[1:].std(dim=0)
    assert spread.min() > 0.1
    assert spread.max() < 2 * spread.min()


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.9])
def test_the_relative_projection_equals_a_slow_solver(epsilon: float) -> None:
    weights = as_vector([0.5, 2.0, 1.0, 0.8])
    counts = as_vector([100.0, 10.0, 40.0, 0.0])
    shares = (weights * counts / counts.sum()).numpy()
    vectors = relative_weight_vectors(
        weights, counts, n=5, epsilon=epsilon, generator=seeded_generator(4)
    )
    points = 1 + epsilon * draw_noise(5, 4, seed=4).numpy()
    for vector, point in zip((vectors / weights)[1:].numpy(), points, strict=True):
        result = minimize(
            fun=lambda r, point=point: 0.5 * (shares * (r - point) ** 2).sum(),
            x0=np.ones(4),
            jac=lambda r, point=point: shares * (r - point),
            bounds=[(1 - epsilon, 1 + epsilon)] * 4,
            constraints={
                "type": "eq",
                "fun": lambda r: (shares * r).sum() - shares.sum(),
                "jac": lambda r: shares,
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert result.success
        # A class without samples may have any ratio.
        assert_allclose(vector[:3], result.x[:3], atol=2e-6)


def test_a_relative_epsilon_of_one_is_refused() -> None:
    weights = torch.ones(3)
    with pytest.raises(ValueError, match="must be below 1"):
        relative_weight_vectors(weights, weights, n=1, epsilon=1.0, generator=seeded_generator())
