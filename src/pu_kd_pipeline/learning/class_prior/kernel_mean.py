"""KM2, the class prior by kernel mean embedding.

Source: Ramaswamy, Scott and Tewari 2016, arXiv:1603.02501. Holds the estimator and the quadratic
program over the simplex that it solves. It reads features instead of scores, so no classifier is
trained; its cost grows with the cube of the number of samples. float64 throughout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

N_COMPONENTS = 50  # principal components, as in the paper's experiments
# In medians of the distance; the bandwidth that separates P and U best is used.
BANDWIDTHS = np.logspace(-1.0, 1.0, 5)
SLOPE_WEIGHT = 0.2  # weight of the slope at infinity; the rest is the slope at the start
FIRST_LAMBDA = 1.05
LARGEST_CLASS_PRIOR = 0.98
TOLERANCE = 0.0025  # on the class prior
GAP = 0.01  # duality gap at which the program is solved, as a share of the squared distance

_MAX_STEPS = 60
_MIN_DISTANCE = 1e-7  # squares of anything smaller are rounding errors
_MIN_RELATIVE_STD = 1e-5  # columns that vary less are constant but for rounding
_MAX_STEP_SHARE = 0.99  # of the step to the boundary, which an interior point must not reach
_MAX_MEDIAN_SAMPLES = 1_000_000  # squared distances that are sorted for their median


def kernel_mean_class_prior(positive: NDArray[Any], unlabeled: NDArray[Any]) -> float:
    """Return the class prior by thresholding the slope of a distance in the kernel space.

    With phi the mean embeddings and C the convex hull of all embedded samples,

        d(lambda) = min_{w in C} || lambda phi(U) + (1 - lambda) phi(P) - w ||

    stays near zero while lambda phi(U) + (1 - lambda) phi(P) is a distribution, which it is up to
    lambda* = 1 / (1 - class prior); d is convex and its slope tends to ||phi(U) - phi(P)||. KM2
    takes lambda* to be where the slope passes 0.8 of its initial value (from 1 to 1.05) plus 0.2 of
    its limit.

    Departures: the slope comes from the minimizer (Danskin), not from finite differences, and the
    bisection runs on the class prior, whose resolution is then the same everywhere.

    Args:
        positive: (n_P, F) finite features; n_P > 0.
        unlabeled: (n_U, F) finite features; n_U > 0. Both are standardized by the unlabeled.

    Returns:
        The class prior, in [0, LARGEST_CLASS_PRIOR].
    """
    positive = np.asarray(positive, np.float64)
    unlabeled = np.asarray(unlabeled, np.float64)
    components = _principal_components(positive, unlabeled)
    samples = torch.from_numpy(components)

    # Mean embeddings as weights of the samples, unlabeled before positives: (n_U + n_P,)
    n_unlabeled = len(unlabeled)
    n_positive = len(positive)
    mean_unlabeled = torch.zeros(len(samples), dtype=torch.float64)
    mean_unlabeled[:n_unlabeled] = 1.0 / n_unlabeled
    mean_positive = torch.zeros(len(samples), dtype=torch.float64)
    mean_positive[n_unlabeled:] = 1.0 / n_positive

    difference = mean_unlabeled - mean_positive
    kernel, limit = _best_kernel(samples, difference)
    # Then no kernel separates the pool from the positives.
    if limit < _MIN_DISTANCE:
        return LARGEST_CLASS_PRIOR
    path = _MixturePath(kernel, mean_unlabeled, mean_positive)

    # d(1) = 0, because phi(U) itself lies in the hull
    first_distance, _ = path.distance_and_slope(FIRST_LAMBDA)
    first_slope = first_distance / (FIRST_LAMBDA - 1.0)
    threshold = (1.0 - SLOPE_WEIGHT) * first_slope + SLOPE_WEIGHT * limit

    low = 0.0
    high = LARGEST_CLASS_PRIOR
    while high - low > TOLERANCE:
        middle = (low + high) / 2.0
        factor = 1.0 / (1.0 - middle)
        _, slope = path.distance_and_slope(factor)
        if slope > threshold:
            high = middle
        else:
            low = middle
    return (low + high) / 2.0


class _MixturePath:
    """The points lambda phi(U) + (1 - lambda) phi(P), and how far they are from the hull.

    Args:
        kernel: (n, n) float64 of all samples.
        mean_unlabeled: (n,) float64 weights of the samples in phi(U).
        mean_positive: (n,) float64 weights of the samples in phi(P).
    """

    def __init__(self, kernel: Tensor, mean_unlabeled: Tensor, mean_positive: Tensor) -> None:
        self._kernel = kernel
        self._mean_unlabeled = mean_unlabeled
        self._mean_positive = mean_positive
        means = torch.stack([mean_unlabeled, mean_positive], dim=1)
        # The kernel is applied once; the image of a mixture is the mixture of the images.
        self._images = kernel @ means

    def distance_and_slope(self, factor: float) -> tuple[float, float]:
        """Return d(lambda) and d'(lambda) at lambda = factor."""
        rest = 1.0 - factor  # negative beyond lambda = 1
        target = factor * self._mean_unlabeled + rest * self._mean_positive
        unlabeled_image = self._images[:, 0]
        positive_image = self._images[:, 1]
        image = factor * unlabeled_image + rest * positive_image

        squared_norm = float(target @ image)
        nearest = nearest_in_hull(self._kernel, image, squared_norm)

        # ||target - nearest||^2 is (target - nearest)' K (target - nearest).
        nearest_image = self._kernel @ nearest
        residual = image - nearest_image
        squared_distance = float((target - nearest) @ residual)
        squared_distance = max(squared_distance, _MIN_DISTANCE**2)
        distance = math.sqrt(squared_distance)

        # Danskin: only the target moves with lambda, the minimizer counts as fixed.
        difference = self._mean_unlabeled - self._mean_positive
        product = float(difference @ residual)
        slope = product / distance
        return distance, slope


def _principal_components(
    positive: NDArray[np.float64], unlabeled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the first components of the standardized samples, unlabeled before positives."""
    samples = np.concatenate([unlabeled, positive])
    std = unlabeled.std(axis=0)
    largest = np.abs(unlabeled).max(axis=0)
    rounding = _MIN_RELATIVE_STD * largest
    is_varied = std > rounding
    if not is_varied.any():
        return samples

    mean = unlabeled.mean(axis=0)
    centered = samples - mean
    rows = centered[:, is_varied] / std[is_varied]
    # The components are those of all samples, not of the unlabeled alone.
    rows -= rows.mean(axis=0)
    scatter = rows.T @ rows
    _, directions = np.linalg.eigh(scatter)
    # eigh sorts by ascending eigenvalue
    largest_first = directions[:, ::-1]
    first_directions = largest_first[:, :N_COMPONENTS]
    return rows @ first_directions


def _best_kernel(samples: Tensor, difference: Tensor) -> tuple[Tensor, float]:
    """Return the Gaussian kernel whose mean embeddings are farthest apart, and their distance."""
    squares = torch.cdist(samples, samples)
    squares.square_()
    stride = max(1, squares.numel() // _MAX_MEDIAN_SAMPLES)
    some_squares = squares.flatten()[::stride]
    median = float(some_squares.median())
    # Where most samples are equal, the median is zero.
    scale = max(median, 1e-300)

    best = torch.ones_like(squares)
    best_distance = -1.0
    for bandwidth in BANDWIDTHS:
        divisor = -2.0 * scale * bandwidth**2
        kernel = torch.exp(squares / divisor)
        squared_distance = float(difference @ kernel @ difference)
        # Rounding can put the square of a distance of zero below it.
        distance = math.sqrt(max(squared_distance, 0.0))
        if distance > best_distance:
            best = kernel
            best_distance = distance
    return best, best_distance


def nearest_in_hull(kernel: Tensor, image: Tensor, squared_norm: float) -> Tensor:
    """Return the weights of the point of the convex hull that is nearest to a target.

    min_v v'Kv - 2 v'image + squared_norm  subject to  v >= 0, sum v = 1,

    by Mehrotra's predictor-corrector interior point method: about a dozen Cholesky factorizations,
    whatever the condition of K. It ends when the duality gap is below GAP of the value or of the
    smallest value that rounding leaves.

    Args:
        kernel: (n, n) float64, positive semidefinite.
        image: (n,) float64, the kernel times the target's weights, which may be negative and sum
            to one.
        squared_norm: the target's squared norm.

    Returns:
        (n,) float64, positive, summing to one but for rounding.
    """
    # Starts in the middle of the hull.
    n = len(image)
    weights = torch.full((n,), 1.0 / n, dtype=torch.float64)
    gradient = kernel @ weights - image
    # Starts below every gradient, so that all slacks are positive.
    below_gradients = gradient.min() - gradient.std(correction=0)
    multiplier = float(below_gradients) - 1e-12
    slack = gradient - multiplier
    smallest_value = _MIN_DISTANCE**2

    for _ in range(_MAX_STEPS):
        # v'Kv - 2 v'image is v'(gradient - image).
        inner_product = weights @ (gradient - image)
        value = float(inner_product) + squared_norm
        gap = gradient @ weights - gradient.min()
        largest_gap = GAP * max(value, smallest_value)
        if float(gap) <= largest_gap:
            break

        system = kernel.clone()
        diagonal = system.diagonal()  # a view
        diagonal.add_(slack / weights)
        factor = torch.linalg.cholesky(system)
        dual_residual = gradient - multiplier - slack

        # The predictor aims straight at zero products weights * slack.
        products = weights * slack
        change, _, slack_change = _newton(factor, weights, slack, dual_residual, products)
        weights_reach = _longest_step(weights, change)
        slack_reach = _longest_step(slack, slack_change)
        reach = min(1.0, weights_reach, slack_reach)

        # The further it gets, the smaller the products that the corrector aims at.
        predicted_weights = weights + reach * change
        predicted_slack = slack + reach * slack_change
        mean_product = float(weights @ slack) / n
        predicted_product = float(predicted_weights @ predicted_slack) / n
        shrinkage = predicted_product / mean_product
        aim = shrinkage**3 * mean_product

        # The corrector also makes up for the product of the two changes, which the linearized
        # conditions leave out.
        products = weights * slack + change * slack_change - aim
        change, step, slack_change = _newton(factor, weights, slack, dual_residual, products)
        weights_reach = _MAX_STEP_SHARE * _longest_step(weights, change)
        slack_reach = _MAX_STEP_SHARE * _longest_step(slack, slack_change)
        reach = min(1.0, weights_reach, slack_reach)

        weights = weights + reach * change
        slack = slack + reach * slack_change
        multiplier += reach * step
        gradient = kernel @ weights - image
    return weights


def _newton(
    factor: Tensor, weights: Tensor, slack: Tensor, dual_residual: Tensor, products: Tensor
) -> tuple[Tensor, float, Tensor]:
    """Return the changes of weights, multiplier and slack that solve the linearized conditions.

    K dv - dy 1 - ds = -dual_residual,  sum dv = 1 - sum v,  s dv + v ds = -products.

    Args:
        factor: lower Cholesky factor of K + diag(slack / weights).
        weights: (n,) v.
        slack: (n,) s.
        dual_residual: (n,) what the gradient exceeds multiplier and slack by.
        products: (n,) what the products v * s exceed their aim by.
    """
    # Without ds, the conditions read (K + diag(s / v)) dv = constant + dy 1.
    constant = -dual_residual - products / weights
    ones = torch.ones_like(weights)
    right = torch.stack([constant, ones], dim=1)
    solved = torch.cholesky_solve(right, factor)
    offset = solved[:, 0]
    direction = solved[:, 1]

    # dv is affine in dy; the condition on the sum of the weights fixes dy.
    weights_sum = float(weights.sum())
    offset_sum = float(offset.sum())
    direction_sum = float(direction.sum())
    missing = 1.0 - weights_sum - offset_sum
    step = missing / direction_sum
    change = offset + step * direction

    # ds follows from the third condition.
    slack_change = (-products - slack * change) / weights
    return change, step, slack_change


def _longest_step(values: Tensor, change: Tensor) -> float:
    """Return the largest step that keeps the positive values from going below zero."""
    is_falling = change < 0.0
    steps_to_zero = -values / change
    steps = torch.where(is_falling, steps_to_zero, torch.inf)
    return float(steps.min())
