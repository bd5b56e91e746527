"""KM2: known mixtures, invariances, and its quadratic program against a slow solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_kd_pipeline.learning.class_prior.estimate import ClassPriorEstimate, estimate_class_prior
from pu_kd_pipeline.learning.class_prior.kernel_mean import (
    LARGEST_CLASS_PRIOR,
    kernel_mean_class_prior,
    nearest_in_hull,
)
from tests.learning.generators import seeded_generator

Array = NDArray[np.float64]
POSITIVE_CENTER = np.array([3.0, 0.0, 0.0])
NEGATIVE_CENTER = np.array([0.0, 3.0, 0.0])


def mixture(class_prior: float, n_positive: int, n_unlabeled: int) -> tuple[Array, Array]:
    """Return positives, and unlabeled samples of which a share `class_prior` is positive."""
    rng = np.random.default_rng(0)
    n_hidden = round(class_prior * n_unlabeled)
    # The hidden positives come first among the unlabeled.
    centers = np.tile(NEGATIVE_CENTER, (n_unlabeled, 1))
    centers[:n_hidden] = POSITIVE_CENTER

    positive_noise = rng.normal(size=(n_positive, 3))
    unlabeled_noise = rng.normal(size=(n_unlabeled, 3))
    return positive_noise + POSITIVE_CENTER, unlabeled_noise + centers


@pytest.mark.parametrize("class_prior", [0.1, 0.3, 0.5])
def test_known_mixtures_are_recovered(class_prior: float) -> None:
    positive, unlabeled = mixture(class_prior, 200, 300)
    value = kernel_mean_class_prior(positive, unlabeled)

    assert value == pytest.approx(class_prior, abs=0.08)


def rescaled(samples: Array) -> Array:
    """Return the samples in other units, with one constant column more."""
    scale = np.array([10.0, 0.1, 3.0])
    shift = np.array([5.0, -1.0, 100.0])
    in_other_units = samples * scale + shift
    n = len(samples)
    constant = np.full((n, 1), 7.0)
    return np.hstack([in_other_units, constant])


def test_scale_shift_order_and_constant_columns_do_not_matter() -> None:
    positive, unlabeled = mixture(0.4, 80, 120)
    value = kernel_mean_class_prior(positive, unlabeled)

    order = np.random.default_rng(1).permutation(120)
    moved_positive = rescaled(positive)
    moved_unlabeled = rescaled(unlabeled[order])
    moved_value = kernel_mean_class_prior(moved_positive, moved_unlabeled)

    # Rounding may turn a late step of the bisection.
    assert moved_value == pytest.approx(value, abs=1e-2)


def test_without_positives_the_class_prior_is_nearly_zero() -> None:
    positive, negative = mixture(0.0, 100, 150)
    value = kernel_mean_class_prior(positive, negative)

    assert value < 0.08


def test_where_both_samples_are_equal_the_class_prior_is_the_largest() -> None:
    _, samples = mixture(0.0, 100, 150)
    value = kernel_mean_class_prior(samples, samples)

    assert value == LARGEST_CLASS_PRIOR

    # Constant features have no scale by which to divide.
    constant = np.ones((4, 2))
    value_of_constants = kernel_mean_class_prior(constant[:3], constant)

    assert value_of_constants == LARGEST_CLASS_PRIOR


def projected(values: Tensor) -> Tensor:
    """Return the nearest point of the simplex, by bisection on the subtracted constant."""
    low = float(values.min()) - 1
    high = float(values.max())
    for _ in range(50):
        middle = (low + high) / 2
        positive_part = (values - middle).clamp(min=0)
        # The sum falls with the constant, from at least 1 to 0.
        if positive_part.sum() > 1:
            low = middle
        else:
            high = middle
    return (values - high).clamp(min=0)


def squared_distance(weights: Tensor, target: Tensor, kernel: Tensor) -> float:
    difference = weights - target
    return float(difference @ kernel @ difference)


def draw_kernel(n: int, n_features: int, generator: torch.Generator) -> Tensor:
    """Return the Gaussian kernel of n random samples, (n, n) float64."""
    samples = torch.randn(n, n_features, generator=generator, dtype=torch.float64)
    squares = torch.cdist(samples, samples) ** 2
    return torch.exp(-squares / 2)


def slow_nearest_in_hull(kernel: Tensor, image: Tensor) -> Tensor:
    """Return the weights of the nearest point, by projected gradient descent."""
    n = len(kernel)
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    for _ in range(600):
        gradient = kernel @ weights - image
        # The largest eigenvalue of the kernel is at most n, so the step 1 / n descends.
        weights = projected(weights - gradient / n)
    return weights


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_point_of_the_hull_equals_that_of_a_slow_solver(seed: int) -> None:
    generator = seeded_generator(seed)
    kernel = draw_kernel(12, 2, generator)
    target = torch.randn(12, generator=generator, dtype=torch.float64)
    target += (1 - target.sum()) / 12
    image = kernel @ target
    slow_weights = slow_nearest_in_hull(kernel, image)

    weights = nearest_in_hull(kernel, image, float(target @ image))

    assert weights.min() > 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)

    # Different weights may be equally near, so the distances are compared.
    slow_distance = squared_distance(slow_weights, target, kernel)
    distance = squared_distance(weights, target, kernel)

    assert distance == pytest.approx(slow_distance, rel=0.02)


def test_a_target_inside_the_hull_is_reached() -> None:
    kernel = draw_kernel(30, 3, seeded_generator())
    target = torch.arange(1.0, 31.0, dtype=torch.float64) / 465  # sums to one
    image = kernel @ target

    weights = nearest_in_hull(kernel, image, float(target @ image))
    distance = squared_distance(weights, target, kernel)

    assert distance < 1e-12


def test_the_interface_reads_features_and_reports_what_its_interval_omits() -> None:
    positive, unlabeled = mixture(0.4, 60, 100)

    def estimate() -> ClassPriorEstimate:
        rng = np.random.default_rng(0)
        return estimate_class_prior(positive, unlabeled, method="km2", n_bootstrap=5, rng=rng)

    first = estimate()

    assert estimate() == first
    assert first.lower <= first.value <= first.upper
    assert first.n_positive == 60
    assert first.n_unlabeled == 100
    assert first.threshold is None
    assert first.note is not None
    assert "covers sampling alone" in first.note
