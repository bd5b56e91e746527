"""KM2, the class prior by kernel mean embedding (Ramaswamy, Scott and Tewari 2016, arXiv:1603.02501).

Holds the estimator and the quadratic program over the simplex that it solves. It reads features, no scores, so it
trains nothing; its cost grows with the cube of the number of samples. float64 throughout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

N_COMPONENTS = 50  # principal components, as in the paper's experiments
BANDWIDTHS = np.logspace(
    -1.0, 1.0, 5
)  # in medians of the distance; the one that tells P from U best is taken
SLOPE_WEIGHT = 0.2  # of the slope at infinity; the rest is the slope at the start
FIRST_LAMBDA = 1.05
LARGEST_CLASS_PRIOR = 0.98
TOLERANCE = 0.0025  # of the class prior
GAP = 0.01  # duality gap at which the program is solved, as a share of the squared distance
_MAX_STEPS = 60
_LEAST_DISTANCE = 1e-7  # squares of anything smaller are rounding


def kernel_mean_class_prior(positive: NDArray[Any], unlabeled: NDArray[Any]) -> float:
    """Return the class prior by thresholding the slope of a distance in the kernel space.

    With phi the mean embeddings and C the convex hull of all embedded samples,

        d(lambda) = min_{w in C} || lambda phi(U) + (1 - lambda) phi(P) - w ||

    stays near zero while lambda phi(U) + (1 - lambda) phi(P) is a distribution, which it is up to
    lambda* = 1 / (1 - class prior); d is convex and its slope tends to ||phi(U) - phi(P)||. KM2 takes lambda* to be
    where the slope passes 0.8 of its initial value (from 1 to 1.05) plus 0.2 of its limit.

    Departures: the slope comes from the minimizer (Danskin), not from finite differences, and the bisection runs on
    the class prior, whose resolution is then the same everywhere.

    Args:
        positive: (n_P, F) finite features; n_P > 0.
        unlabeled: (n_U, F) finite features; n_U > 0. They are standardized by the unlabeled.

    Returns:
        The class prior, in [0, LARGEST_CLASS_PRIOR].
    """
    components = _principal_components(
        np.asarray(positive, np.float64), np.asarray(unlabeled, np.float64)
    )
    samples = torch.from_numpy(components)
    n_unlabeled, n_positive = len(unlabeled), len(positive)
    mean_unlabeled, mean_positive = torch.zeros(2, len(samples), dtype=torch.float64)
    mean_unlabeled[:n_unlabeled] = 1.0 / n_unlabeled
    mean_positive[n_unlabeled:] = 1.0 / n_positive
    difference = mean_unlabeled - mean_positive
    kernel, limit = _best_kernel(samples, difference)
    if limit < _LEAST_DISTANCE:
        return LARGEST_CLASS_PRIOR  # nothing tells the pool from the positives
    linear = kernel @ torch.stack([mean_unlabeled, mean_positive], dim=1)

    def distance_and_slope(factor: float) -> tuple[float, float]:
        target = factor * mean_unlabeled + (1.0 - factor) * mean_positive
        image = factor * linear[:, 0] + (1.0 - factor) * linear[:, 1]
        nearest = nearest_in_hull(kernel, image, float(target @ image))
        residual = image - kernel @ nearest
        distance = math.sqrt(max(float((target - nearest) @ residual), _LEAST_DISTANCE**2))
        return distance, float(difference @ residual) / distance

    first_slope = distance_and_slope(FIRST_LAMBDA)[0] / (FIRST_LAMBDA - 1.0)
    threshold = (1.0 - SLOPE_WEIGHT) * first_slope + SLOPE_WEIGHT * limit
    low, high = 0.0, LARGEST_CLASS_PRIOR
    while high - low > TOLERANCE:
        middle = (low + high) / 2.0
        if distance_and_slope(1.0 / (1.0 - middle))[1] > threshold:
            high = middle
        else:
            low = middle
    return (low + high) / 2.0


def _principal_components(
    positive: NDArray[np.float64], unlabeled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the first components of the standardized unlabeled and, after them, positives."""
    std = unlabeled.std(axis=0)
    is_varied = std > 1e-5 * np.abs(unlabeled).max(axis=0)
    if not is_varied.any():
        return np.concatenate([unlabeled, positive])
    rows = (np.concatenate([unlabeled, positive]) - unlabeled.mean(axis=0))[:, is_varied] / std[
        is_varied
    ]
    rows -= rows.mean(axis=0)
    _, directions = np.linalg.eigh(rows.T @ rows)
    return rows @ directions[:, ::-1][:, :N_COMPONENTS]


def _best_kernel(samples: Tensor, difference: Tensor) -> tuple[Tensor, float]:
    """Return the Gaussian kernel whose bandwidth sets the mean embeddings farthest apart, and that distance."""
    squares = torch.cdist(samples, samples).square_()
    median = float(squares.flatten()[:: max(1, squares.numel() // 1_000_000)].median())
    best, best_distance = torch.ones_like(squares), -1.0
    for bandwidth in BANDWIDTHS:
        kernel = torch.exp(squares / (-2.0 * max(median, 1e-300) * bandwidth**2))
        distance = math.sqrt(max(float(difference @ kernel @ difference), 0.0))
        if distance > best_distance:
            best, best_distance = kernel, distance
    return best, best_distance


def nearest_in_hull(kernel: Tensor, image: Tensor, squared_norm: float) -> Tensor:
    """Return the weights of the point of the convex hull that is nearest to a target.

    min_v v'Kv - 2 v'image + squared_norm  subject to  v >= 0, sum v = 1,

    by Mehrotra's predictor-corrector interior point method: a dozen Cholesky factorisations, whatever the condition
    of K. It ends when the duality gap is below GAP of the value or of the smallest value that rounding leaves.

    Args:
        kernel: (n, n) float64, positive semidefinite.
        image: (n,) float64, the kernel times the target's weights, which may be negative and sum to one.
        squared_norm: the target's squared norm.

    Returns:
        (n,) float64, positive, summing to one but for rounding.
    """
    n = len(image)
    weights = torch.full((n,), 1.0 / n, dtype=torch.float64)
    gradient = kernel @ weights - image
    multiplier = float(gradient.min() - gradient.std(correction=0)) - 1e-12
    slack = gradient - multiplier
    for _ in range(_MAX_STEPS):
        value = float(weights @ (gradient - image)) + squared_norm
        if float(gradient @ weights - gradient.min()) <= GAP * max(value, _LEAST_DISTANCE**2):
            break
        system = kernel.clone()
        system.diagonal().add_(slack / weights)
        factor = torch.linalg.cholesky(system)
        dual_residual = gradient - multiplier - slack
        # the predictor heads straight for zero products weights * slack; how far it gets sets the corrector's aim
        change, _, slack_change = _newton(factor, weights, slack, dual_residual, weights * slack)
        reach = min(1.0, _longest_step(weights, change), _longest_step(slack, slack_change))
        product = float(weights @ slack) / n
        aim = (
            float((weights + reach * change) @ (slack + reach * slack_change)) / n / product
        ) ** 3 * product
        products = weights * slack + change * slack_change - aim
        change, step, slack_change = _newton(factor, weights, slack, dual_residual, products)
        reach = min(
            1.0, 0.99 * _longest_step(weights, change), 0.99 * _longest_step(slack, slack_change)
        )
        weights, slack = weights + reach * change, slack + reach * slack_change
        multiplier += reach * step
        gradient = kernel @ weights - image
    return weights


def _newton(
    factor: Tensor, weights: Tensor, slack: Tensor, dual_residual: Tensor, products: Tensor
) -> tuple[Tensor, float, Tensor]:
    """Return the changes of weights, multiplier and slack that solve the linearised optimality conditions.

    K dv - dy 1 - ds = -dual_residual,  sum dv = 1 - sum v,  s dv + v ds = -products.

    Args:
        factor: lower Cholesky factor of K + diag(slack / weights).
        weights: (n,) v.
        slack: (n,) s.
        dual_residual: (n,).
        products: (n,) what the products v * s exceed their aim by.
    """
    right = torch.stack([-dual_residual - products / weights, torch.ones_like(weights)], dim=1)
    solved = torch.cholesky_solve(right, factor)
    step = (1.0 - float(weights.sum()) - float(solved[:, 0].sum())) / float(solved[:, 1].sum())
    change = solved[:, 0] + step * solved[:, 1]
    return change, step, (-products - slack * change) / weights


def _longest_step(values: Tensor, change: Tensor) -> float:
    """Return the largest step that keeps the positive values from going below zero."""
    return float(torch.where(change < 0.0, -values / change, torch.inf).min())
