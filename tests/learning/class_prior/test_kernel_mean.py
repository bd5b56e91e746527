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

Array = NDArray[np.float64]
POSITIVE_CENTER = np.array([3.0, 0.0, 0.0])
NEGATIVE_CENTER = np.array([0.0, 3.0, 0.0])


def mixture(class_prior: float, n_positive: int, n_unlabeled: int) -> tuple[Array, Array]:
    """Return positives, and unlabeled samples of which a share `class_prior` is positive."""
    rng = np.random.default_rng(0)
    n_hidden = round(class_prior * n_unlabeled)
    centers = np.tile(NEGATIVE_CENTER, (n_unlabeled, 1))
    centers[:n_hidden] = POSITIVE_CENTER
    positive = rng.normal(size=(n_positive, 3)) + POSITIVE_CENTER
    unlabeled = rng.normal(size=(n_unlabeled, 3)) + centers
    return positive, unlabeled


@pytest.mark.parametrize("class_prior", [0.1, 0.3, 0.5])
def test_known_mixtures_are_recovered(class_prior: float) -> None:
    value = kernel_mean_class_prior(*mixture(class_prior, 200, 300))
    assert value == pytest.approx(class_prior, abs=0.08)


def rescaled(samples: Array) -> Array:
    """Return the samples in other units, with one constant column more."""
    scale = np.array([10.0, 0.1, 3.0])
    shift = np.array([5.0, -1.0, 100.0])
    constant = np.full((len(samples), 1), 7.0)
    return np.hstack([samples * scale + shift, constant])


def test_scale_shift_order_and_constant_columns_do_not_matter() -> None:
    positive, unlabeled = mixture(0.4, 80, 120)
    value = kernel_mean_class_prior(positive, unlabeled)
    order = np.random.default_rng(1).permutation(120)
    moved = kernel_mean_class_prior(rescaled(positive), rescaled(unlabeled[order]))
    assert moved == pytest.approx(value, abs=1e-2)


def test_the_extremes_reach_the_ends_of_the_range() -> None:
    positive, unlabeled = mixture(0.0, 100, 150)
    assert kernel_mean_class_prior(positive, unlabeled) < 0.08
    assert kernel_mean_class_prior(unlabeled, unlabeled) == LARGEST_CLASS_PRIOR
    assert kernel_mean_class_prior(np.ones((3, 2)), np.ones((4, 2))) == LARGEST_CLASS_PRIOR


def projected(values: Tensor) -> Tensor:
    """Return the nearest point of the simplex, by bisection on the subtracted constant."""
    low = float(values.min()) - 1
    high = float(values.max())
    for _ in range(50):
        middle = (low + high) / 2
        total = float((values - middle).clamp(min=0).sum())
        if total > 1:
            low = middle
        else:
            high = middle
    return (values - high).clamp(min=0)


def gaussian_kernel(samples: Tensor) -> Tensor:
    squares = torch.cdist(samples, samples) ** 2
    return torch.exp(-squares / 2)


def squared_distance(weights: Tensor, target: Tensor, kernel: Tensor) -> float:
    difference = weights - target
    return float(difference @ kernel @ difference)


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_point_of_the_hull_equals_that_of_a_slow_solver(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel = gaussian_kernel(torch.randn(12, 2, generator=generator, dtype=torch.float64))
    target = torch.randn(12, generator=generator, dtype=torch.float64)
    target += (1 - target.sum()) / 12
    image = kernel @ target

    # Projected gradient descent; the largest eigenvalue of the kernel is at most 12.
    slow = torch.full((12,), 1 / 12, dtype=torch.float64)
    for _ in range(600):
        slow = projected(slow - (kernel @ slow - image) / 12)

    weights = nearest_in_hull(kernel, image, float(target @ image))
    assert float(weights.min()) > 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    slow_distance = squared_distance(slow, target, kernel)
    assert squared_distance(weights, target, kernel) == pytest.approx(slow_distance, rel=0.02)


def test_a_target_inside_the_hull_is_reached() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = gaussian_kernel(torch.randn(30, 3, generator=generator, dtype=torch.float64))
    target = torch.arange(1.0, 31.0, dtype=torch.float64) / 465  # sums to one
    image = kernel @ target
    weights = nearest_in_hull(kernel, image, float(target @ image))
    assert squared_distance(weights, target, kernel) < 1e-12


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
