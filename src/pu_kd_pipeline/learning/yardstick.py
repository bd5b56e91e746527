"""The yardstick: which images students are measured on, and how close they come to the teacher.

A student is measured on images that none learns from, the same for every student: agreement on
images of its own manifest is high for a manifest of easy images, and orders students wrongly.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.learning.ranking import Rows, best_first, places_within_groups

_LOWEST_LOGIT = -1e30
_LOG_FACTORS = (-math.log(20), math.log(20))


class Closeness(NamedTuple):
    """How close a student comes to its teacher on some images."""

    agreement: float
    """Share of the images that both give the same class, in [0, 1]."""
    kl: float
    """Mean KL(softmax(z_t) || softmax(s z_s)) in nats, at least 0, with the best factor s."""
    factor: float
    """The best factor s: below 1, the student is too sure."""


def closeness(teacher_logits: Tensor, student_logits: Tensor) -> Closeness:
    """Return the agreement of student and teacher, and their divergence after temperature scaling.

    The student's logits are multiplied by the one factor s in [1 / 20, 20] that makes the
    divergence smallest (Guo et al. 2017, arXiv:1706.04599, there by labels). So students of all
    temperatures can be compared: logits that are too large cost divergence and no accuracy.

    Args:
        teacher_logits: (N, K) any float dtype; N > 0.
        student_logits: (N, K) on the same device.

    Raises:
        FloatingPointError: the divergence is not finite.
    """
    is_equal = teacher_logits.argmax(dim=1) == student_logits.argmax(dim=1)
    agreement = is_equal.double().mean().item()

    def divergence(log_factor: float) -> float:
        return divergences(teacher_logits, student_logits, math.exp(log_factor)).mean().item()

    unscaled = divergence(0.0)
    if not np.isfinite(unscaled):
        raise FloatingPointError(
            f"the student's divergence from the teacher is {unscaled}: its outputs are not finite"
        )
    # It is convex in the factor, so that there is one minimum.
    fitted = minimize_scalar(
        divergence, bounds=_LOG_FACTORS, method="bounded", options={"xatol": 1e-4}
    )
    if unscaled <= fitted.fun:
        return Closeness(agreement, unscaled, 1.0)
    return Closeness(agreement, float(fitted.fun), math.exp(fitted.x))


def divergences(teacher_logits: Tensor, student_logits: Tensor, factor: float) -> Tensor:
    """Return KL(softmax(z_t) || softmax(s z_s)) of each image in nats, (N,) float64.

    Args:
        teacher_logits: (N, K) any float dtype.
        student_logits: (N, K) on the same device.
        factor: s > 0.
    """
    # A class that the teacher excludes adds nothing: without the limit, 0 * -inf would be NaN.
    of_teacher = teacher_logits.double().clamp(min=_LOWEST_LOGIT)
    # In double precision: the mean must not depend on the order of the images.
    return kl_divergence(of_teacher, student_logits.double() * factor)


def yardstick_size(
    n_pool: int, n_images: int, max_share: float, uniform_share: float
) -> tuple[int, int]:
    """Return how many images are drawn uniformly, and how many among the related ones."""
    n = min(n_images, int(max_share * n_pool))
    n_uniform = round(uniform_share * n)
    return n_uniform, n - n_uniform


def uniform_rows(draw: NDArray[np.uint64], n: int) -> Rows:
    """Return n rows drawn uniformly: those with the lowest numbers.

    Args:
        draw: (N,) random numbers that depend on the image alone and not on its row.
        n: at most N.
    """
    order = np.argsort(draw, kind="stable")
    return order[:n].astype(np.int64)


def related_rows(
    classes: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    draw: NDArray[np.uint64],
    n: int,
    max_share: float,
) -> Rows:
    """Return up to n rows among the most related images, as many of each class as there are.

    The images of a class are ranked, and the ranking is cut into blocks of ceil(1 / max_share)
    images. One image of each block is drawn: the first block of every class, then the second, and
    so on. So no more than `max_share` of the best r images of a class are taken, for any r that is
    a multiple of the block: taking the best images themselves would take all related images of a
    pool that has few. Images behind the last whole block of a class are not drawn.

    Args:
        classes: (N,) the teacher's class.
        scores: (N,) without NaN, larger means more related.
        draw: (N,) random numbers that depend on the image alone and not on its row.
        n: at least 0.
        max_share: in (0, 1).

    Returns:
        (m,) rows, m <= n: fewer where the blocks do not suffice.
    """
    block_size = int(np.ceil(1 / max_share))
    ranking = best_first(scores, draw)
    ranked_classes = classes[ranking].astype(np.int64)
    places = places_within_groups(ranked_classes)
    blocks = places // block_size
    n_of_class = np.bincount(ranked_classes, minlength=1)[ranked_classes]
    is_whole = (blocks + 1) * block_size <= n_of_class
    rows = ranking[is_whole]
    blocks = blocks[is_whole]
    ranked_classes = ranked_classes[is_whole]

    # Within its block and class, the image with the lowest number is drawn.
    order = np.lexsort((draw[rows], ranked_classes, blocks))
    drawn = order[::block_size]
    # Of the last blocks that count, only some classes may give an image: the numbers decide which.
    by_block = np.lexsort((draw[rows[drawn]], blocks[drawn]))
    return rows[drawn[by_block]][:n]
