"""Agreement over the length of training: fitted to a few lengths, continued to a longer one.

The log odds of a share of images grow about linearly with the logarithm of the number of updates,
and more slowly in the end. A continuation therefore lies between two lines: the curve stays where
it is, or continues as steeply as before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.paired import PairedDifference
from pu_kd_pipeline.learning.proportions import LEVEL

# Standard deviation of the log odds between trainings that differ in their seed alone, and how many
# degrees of freedom this knowledge counts: about 0.1 for photos (five rules) and for digits (four),
# with three seeds each (docs/results). A pilot has too few trainings to measure it alone.
_USUAL_NOISE = 0.1
_USUAL_NOISE_FREEDOM = 8
_POINTS_OF_LINE = 2


class Forecast(NamedTuple):
    """A share in [0, 1], or a difference of two, with its 95 % interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class LearningCurve:
    """How often a student is right after trainings of several lengths, each with its own schedule.

    Attributes:
        n_updates: (R,) ascending lengths, R > 0.
        n_hits: (R,) images of the same set that it is right about.
        n_images: size of the set.
    """

    n_updates: tuple[int, ...]
    n_hits: tuple[int, ...]
    n_images: int

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """(R,) log odds of the shares; half an image is added to each side, so that none is 0."""
        hits = np.array(self.n_hits, dtype=np.float64)
        return np.log((hits + 0.5) / (self.n_images - hits + 0.5))


@dataclass(frozen=True)
class FittedLine:
    """A line through the log odds of a curve, over the logarithm of the number of updates.

    Attributes:
        last: number of updates of the longest training.
        level: log odds of the line there.
        slope: per e-fold of updates, at least 0.
        squared_error: sum over the lengths.
        n_lengths: of the curve; a line through one length says nothing about longer trainings.
        freedom: degrees of freedom that the error has.
        n_images: of the curve.
    """

    last: int
    level: float
    slope: float
    squared_error: float
    freedom: int
    n_images: int
    n_lengths: int = _POINTS_OF_LINE

    def is_unknown_at(self, n_updates: int) -> bool:
        """Return whether nothing is known of a training of that length."""
        return self.n_lengths < _POINTS_OF_LINE and n_updates > self.last

    def log_odds(self, n_updates: int) -> float:
        """Return the log odds of the line for a training that is no shorter than the longest."""
        return self.level + self.slope * max(0.0, math.log(n_updates / self.last))


def fit_line(curve: LearningCurve) -> FittedLine:
    """Return the line with the smallest squared error among those that do not fall.

    Through one length, and where the error would ask for a falling line, it is flat.
    """
    x = np.log(np.array(curve.n_updates, dtype=np.float64))
    y = curve.log_odds
    centered = x - x.mean()
    spread = float((centered**2).sum())
    slope = 0.0
    if spread > 0:
        slope = max(0.0, float((centered * y).sum()) / spread)
    fitted = y.mean() + slope * centered
    return FittedLine(
        last=curve.n_updates[-1],
        level=float(fitted[-1]),
        slope=slope,
        squared_error=float(((y - fitted) ** 2).sum()),
        freedom=max(0, len(y) - _POINTS_OF_LINE),
        n_images=curve.n_images,
        n_lengths=len(y),
    )


@dataclass(frozen=True)
class TrainingNoise:
    """How much the log odds of a training vary by chance.

    Attributes:
        deviation: standard deviation.
        freedom: its degrees of freedom.
    """

    deviation: float
    freedom: int

    @property
    def quantile(self) -> float:
        """Of Student's t distribution, for a 95 % interval."""
        # imported late: it takes a second
        from scipy import stats

        return float(stats.t.ppf((1 + LEVEL) / 2, self.freedom))


def training_noise(lines: Sequence[FittedLine]) -> TrainingNoise:
    """Return the noise around lines: their errors, pooled with what is usual.

    The variance is the mean of both, weighted by their degrees of freedom.
    """
    freedom = sum(line.freedom for line in lines)
    # A line that may not fall, or has two points, has no error that counts.
    squared_error = sum(line.squared_error for line in lines if line.freedom)
    total = freedom + _USUAL_NOISE_FREEDOM
    variance = (squared_error + _USUAL_NOISE_FREEDOM * _USUAL_NOISE**2) / total
    return TrainingNoise(math.sqrt(variance), total)


def forecast_share(line: FittedLine, noise: TrainingNoise, n_updates: int) -> Forecast:
    """Return the share that a training of a length is expected to reach.

    The interval reaches from the curve that stays where it is to the one that continues as before,
    and counts the noise of trainings and of the images on both sides. The value is in the middle
    of the two, in log odds. A length below the longest has the forecast of the longest. From a
    single length, a longer training may reach anything above it.

    Args:
        line: of the student.
        noise: of trainings like these.
        n_updates: of the training, > 0.
    """
    flat = line.level
    steep = line.log_odds(n_updates)
    share = _share(flat)
    # Of the log odds of a share of n images; half an image keeps it finite.
    n = line.n_images
    image_variance = 1.0 / (n * share * (1 - share) + 0.5)
    margin = noise.quantile * math.sqrt(noise.deviation**2 + image_variance)
    # What is measured of n images is a multiple of 1 / n.
    half_an_image = 0.5 / n
    upper = min(1.0, _share(steep + margin) + half_an_image)
    if line.is_unknown_at(n_updates):
        upper = 1.0
    return Forecast(
        _share((flat + steep) / 2), max(0.0, _share(flat - margin) - half_an_image), upper
    )


def forecast_difference(
    first: FittedLine,
    second: FittedLine,
    noise: TrainingNoise,
    measured: PairedDifference,
    n_updates: int,
) -> Forecast:
    """Return the difference of two shares that trainings of a length are expected to have.

    It lies between the difference that was measured with the longest trainings and that of both
    lines, continued. The interval adds the noise of two trainings and of the images. From a single
    length, nothing is known of a longer one.

    Args:
        first: of one student.
        second: of the other, with the same longest training, on the same images.
        noise: of trainings like these.
        measured: the difference at the longest trainings, with its interval over images.
        n_updates: of the trainings, > 0.
    """
    difference = measured.difference
    continued = _share(first.log_odds(n_updates)) - _share(second.log_odds(n_updates))
    share = (_share(first.level) + _share(second.level)) / 2
    # A share p changes by p (1 - p) per unit of log odds.
    of_trainings = math.sqrt(2) * noise.deviation * share * (1 - share)
    of_images = (measured.upper - measured.lower) / 2
    if first.is_unknown_at(n_updates) or second.is_unknown_at(n_updates):
        return Forecast(difference, -1.0, 1.0)
    margin = math.hypot(noise.quantile * of_trainings, of_images)
    return Forecast(
        (difference + continued) / 2,
        max(-1.0, min(difference, continued) - margin),
        min(1.0, max(difference, continued) + margin),
    )


def _share(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-log_odds))
