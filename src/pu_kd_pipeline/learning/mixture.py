"""Mixture sampling: labeled, related and all images in every batch, instead of a cut of the pool.

The related part is drawn by a distribution over the pool; its share of the draws falls while the
student trains, and how fast follows from the number of draws. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.ranking import best_first

DEFAULT_TEMPERATURE = 0.05
"""The temperature of `related_probabilities` where nothing is known of the class prior."""

# Sums of shares are rounded down to whole images; this keeps 6.999999 from becoming 6.
_ROUNDING = 1e-6


def related_probabilities(
    scores: NDArray[np.floating[Any]],
    classes: NDArray[np.integer[Any]],
    tie_break: NDArray[np.uint64],
    *,
    temperature: float,
) -> NDArray[np.float64]:
    """Return the probability of each pool image in the related draws, with classes drawn evenly.

    Within a class p ~ exp((rank - 1) / temperature), where the rank is that of the score in the
    whole pool, from 1 (best) down to 1 / n. Ranks, because they need no calibrated scores. Every
    class that the teacher sees in the pool has the same sum. Our proposal.

    Args:
        scores: (n,) finite, larger means more related, n > 0.
        classes: (n,) the teacher's class of each image, at least 0.
        tie_break: (n,) order of images with equal scores.
        temperature: share of the pool in which p falls by a factor of e, > 0. With even scores
            over the classes about 2 * temperature * n images are drawn often, see
            `effective_number`.

    Returns:
        (n,) float64, summing to one.

    Raises:
        ValueError: temperature is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    n = len(scores)
    order = best_first(scores, tie_break)
    places = np.empty(n, dtype=np.int64)
    places[order] = np.arange(n)
    exponents = -places / (n * temperature)

    # Counted from the best image of each class, so that no class underflows to a sum of zero.
    n_classes = int(classes.max()) + 1
    best_of_class = np.full(n_classes, -np.inf)
    np.maximum.at(best_of_class, classes, exponents)
    weights = np.exp(exponents - best_of_class[classes])
    sum_of_class = np.bincount(classes, weights=weights, minlength=n_classes)
    n_present = int((sum_of_class > 0).sum())
    return weights / sum_of_class[classes] / n_present


def temperature_of(readings: Sequence[float]) -> float:
    """Return the temperature with which about as many images are drawn often as are related.

    This is half of the class prior, because about 2 * temperature * n images are drawn often. Of
    several readings the largest counts: draws that are too broad cost less than draws that repeat
    a few images. Without any, `DEFAULT_TEMPERATURE`. Our proposal.

    Args:
        readings: of the class prior, each in (0, 1].
    """
    if not readings:
        return DEFAULT_TEMPERATURE
    return max(readings) / 2.0


def effective_number(probabilities: NDArray[np.float64]) -> float:
    """Return 1 / sum p^2 (Kish 1965), from 1 to n.

    An image of D draws is shown D p times, and a drawn one D sum p^2 = D / effective number times
    in the mean over the draws.

    Args:
        probabilities: (n,) non-negative, summing to one.
    """
    return float(1.0 / np.square(probabilities).sum())


@dataclass(frozen=True)
class RelatedSchedule:
    """The share of related draws among the draws of the pool: falls linearly, then stays.

    Attributes:
        first: the share at the start of the training, in (0, 1].
        last: the share from `end` on, in [0, first].
        end: share of the training after which `last` is reached, in (0, 1].
    """

    first: float
    last: float
    end: float

    def share(self, progress: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share at (m,) points of the training, each in [0, 1]."""
        done = np.minimum(progress / self.end, 1.0)
        return self.first + (self.last - self.first) * done

    def integral(self, progress: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the integral of the share from the start to (m,) points of the training."""
        falling = np.minimum(progress, self.end)
        slope = (self.last - self.first) / self.end
        return self.first * falling + slope * falling**2 / 2 + self.last * (progress - falling)

    @property
    def mean(self) -> float:
        """The mean share over the whole training."""
        return float(self.integral(np.ones(1))[0])


def related_schedule(
    *, first: float, max_repeats: float, n_effective: float, n_draws: float
) -> RelatedSchedule:
    """Return the schedule with which a drawn related image is shown at most `max_repeats` times.

    With D draws of the pool in all and a mean share m of related ones, a drawn related image is
    shown m D / n_effective times in the mean over the related draws. So

        m = min(first, max_repeats * n_effective / D).

    The share starts at `first` and falls linearly to the end of the training, to 2 m - first.
    Where that is negative it reaches 0 earlier, after 2 m / first of the training, and the rest is
    uniform. In a short training (m = first) it stays at `first`. Our proposal: images that are
    shown too often stop to teach (Goyal et al. 2024, arXiv:2404.07177), and in a long training
    related images first and the whole pool at the end was the better order.

    Args:
        first: share of related draws at the start, in (0, 1].
        max_repeats: how often a drawn related image is shown at most, > 0.
        n_effective: effective number of related images, >= 1.
        n_draws: D, > 0.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0.0 < first <= 1.0:
        raise ValueError(f"first must lie in (0, 1], got {first!r}")
    if not (max_repeats > 0.0 and n_effective > 0.0 and n_draws > 0.0):
        raise ValueError(
            "max_repeats, n_effective and n_draws must be positive, "
            f"got {max_repeats!r}, {n_effective!r} and {n_draws!r}"
        )
    mean = min(first, max_repeats * n_effective / n_draws)
    last = 2.0 * mean - first
    if last >= 0.0:
        return RelatedSchedule(first, last, end=1.0)
    return RelatedSchedule(first, last=0.0, end=2.0 * mean / first)


def batch_counts(
    n_updates: int,
    batch_size: int,
    *,
    labeled_share: float,
    schedule: RelatedSchedule | None = None,
) -> NDArray[np.int64]:
    """Return how many labeled, related and other pool images each batch has.

    Shares are kept on average: a batch of 64 with a labeled share of 0.1 has 6 or 7 labeled images,
    and ten batches have 64.

    Args:
        n_updates: number of batches, > 0.
        batch_size: images of each.
        labeled_share: in [0, 1].
        schedule: of the related share among the pool images; None: no related draws.

    Returns:
        (n_updates, 3) int64, each row summing to `batch_size`.
    """
    n_done = np.arange(1, n_updates + 1, dtype=np.int64)
    labeled = _whole_images(n_done * (batch_size * labeled_share))
    labeled = np.minimum(labeled, batch_size)
    pool = batch_size - labeled
    related = np.zeros(n_updates, dtype=np.int64)
    if schedule is not None:
        # The mean share during each update: even a change within one update is then kept.
        mean_shares = np.diff(schedule.integral(n_done / n_updates), prepend=0.0) * n_updates
        expected = np.cumsum(pool * mean_shares)
        related = np.minimum(_whole_images(expected), pool)
    return np.stack([labeled, related, pool - related], axis=1)


def _whole_images(cumulative: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the counts whose cumulative sums are the given ones, rounded down."""
    whole = np.floor(cumulative + _ROUNDING).astype(np.int64)
    return np.diff(whole, prepend=0)
