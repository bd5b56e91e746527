"""KM2: known mixtures, invariances, and its quadratic program against a slow solver and its optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior
from pu_kd_pipeline.learning.class_prior.kernel_mean import (
    LARGEST_CLASS_PRIOR,
    kernel_mean_class_prior,
    nearest_in_hull,
)

Array = NDArray[np.float64]


def mixture(
    class_prior: float, n_positive: int, n_unlabeled: int, seed: int = 0
) -> tuple[Array, Array]:
    """Positives about (3, 0, 0), and unlabeled samples that hold `class_prior` of them among others about (0, 3, 0)."""
    rng = np.random.default_rng(seed)
    n_hidden = round(class_prior * n_unlabeled)
    centers = np.array([[3.0, 0.0, 0.0]] * n_hidden + [[0.0, 3.0, 0.0]] * (n_unlabeled - n_hidden))
    positive = rng.normal(size=(n_positive, 3)) + np.array([3.0, 0.0, 0.0])
    return positive, rng.normal(size=(n_unlabeled, 3)) + centers


@pytest.mark.parametrize("class_prior", [0.1, 0.3, 0.5])
def test_known_mixtures_are_recovered(class_prior: float) -> None:
    assert kernel_mean_class_prior(*mixture(class_prior, 200, 300)) == pytest.approx(
        class_prior, abs=0.08
    )


def test_scale_shift_order_and_constant_columns_do_not_matter() -> None:
    positive, unlabeled = mixture(0.4, 80, 120)
    value = kernel_mean_class_prior(positive, unlabeled)
    order = np.random.default_rng(1).permutation(120)
    scale, shift = np.array([10.0, 0.1, 3.0]), np.array([5.0, -1.0, 100.0])
    moved = (
        np.hstack([part * scale + shift, np.full((len(part), 1), 7.0)])
        for part in (positive, unlabeled[order])
    )
    assert kernel_mean_class_prior(*moved) == pytest.approx(value, abs=1e-2)


def test_the_extremes_reach_the_ends_of_the_range() -> None:
    positive, unlabeled = mixture(0.0, 100, 150)
    assert kernel_mean_class_prior(positive, unlabeled) < 0.08
    assert kernel_mean_class_prior(unlabeled, unlabeled) == LARGEST_CLASS_PRIOR
    assert kernel_mean_class_prior(np.ones((3, 2)), np.ones((4, 2))) == LARGEST_CLASS_PRIOR


def projected(values: Tensor) -> Tensor:
    """The nearest point of the simplex, by bisection on what is subtracted."""
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if float((values - middle).clamp(min=0).sum()) > 1 else (low, middle)
        )
    return (values - high).clamp(min=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_point_of_the_hull_equals_that_of_a_slow_solver(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    kernel = torch.exp(-(torch.cdist(samples, samples) ** 2) / 2)
    target = torch.randn(12, generator=generator, dtype=torch.float64)
    target += (1 - target.sum()) / 12
    image, squared_norm = kernel @ target, float(target @ kernel @ target)
    slow = torch.full((12,), 1 / 12, dtype=torch.float64)
    for _ in range(600):
        slow = projected(slow - (kernel @ slow - image) / 12)

    def distance(weights: Tensor) -> float:
        return float((weights - target) @ kernel @ (weights - target))

    weights = nearest_in_hull(kernel, image, squared_norm)
    assert float(weights.min()) > 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert distance(weights) == pytest.approx(distance(slow), rel=0.02)


def test_a_target_inside_the_hull_is_reached() -> None:
    samples = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = torch.exp(-(torch.cdist(samples, samples) ** 2) / 2)
    target = torch.arange(1.0, 31.0, dtype=torch.float64) / 465
    weights = nearest_in_hull(kernel, kernel @ target, float(target @ kernel @ target))
    assert float((weights - target) @ kernel @ (weights - target)) < 1e-12


def test_the_interface_reads_features_and_says_what_its_interval_leaves_out() -> None:
    positive, unlabeled = mixture(0.4, 60, 100)
    first, again = (
        estimate_class_prior(
            positive, unlabeled, method="km2", n_bootstrap=5, rng=np.random.default_rng(0)
        )
        for _ in range(2)
    )
    assert first == again
    assert first.lower <= first.value <= first.upper
    assert (first.n_positive, first.n_unlabeled, first.threshold) == (60, 100, None)
    assert first.note is not None
    assert "covers sampling alone" in first.note
