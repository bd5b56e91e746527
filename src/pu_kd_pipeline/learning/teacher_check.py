"""What a few labeled images say about a teacher: its accuracy, and whether that is chance."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.metrics import accuracy
from pu_kd_pipeline.learning.proportions import Interval, clopper_pearson_interval

Classes = NDArray[np.integer[Any]]

_CONFIDENT = 0.75  # a probability that a trained teacher gives to one of the images at least
_TOLERANCE = 1e-3
_N_CLASSES_WITHOUT_SIGN = 2  # centered logits of two classes are z and -z, whatever they are
MIN_IMAGES = 20  # with fewer, nothing is concluded that stops a run


class Verdict(StrEnum):
    """What the labeled images say about the teacher."""

    USABLE = "usable"  # it may know more than half of what chance does not
    LOW = "low"  # it is better than chance, and knows less than half of the rest
    CHANCE = "chance"  # it is no better than chance, and knows less than half of the rest
    UNKNOWN = "unknown"  # the interval holds both: too few images


@dataclass(frozen=True)
class LabeledAccuracy:
    """The accuracy of a teacher on labeled images.

    Attributes:
        accuracy: share of the images that it classifies as labeled.
        interval: of Clopper and Pearson, 95 %.
        chance: the accuracy of a teacher whose answers do not depend on the image.
        n_images: number of images.
        n_classes: number of classes among the labels.
    """

    accuracy: float
    interval: Interval
    chance: float
    n_images: int
    n_classes: int

    @property
    def half_way(self) -> float:
        """The accuracy in the middle between chance and no error at all."""
        return (1 + self.chance) / 2

    @property
    def verdict(self) -> Verdict:
        """What the interval says."""
        is_below = self.interval.upper < self.half_way
        may_be_chance = self.interval.lower <= self.chance
        if is_below and may_be_chance:
            return Verdict.CHANCE
        if is_below:
            return Verdict.LOW
        if may_be_chance:
            return Verdict.UNKNOWN
        return Verdict.USABLE

    @property
    def is_refused(self) -> bool:
        """Whether the teacher is at chance level, on enough images to be sure."""
        return self.verdict == Verdict.CHANCE and self.n_images >= MIN_IMAGES


def labeled_accuracy(predicted: Classes, labels: Classes, n_outputs: int) -> LabeledAccuracy:
    """Return the accuracy of a teacher on labeled images, with its interval and chance.

    Args:
        predicted: (N,) classes; N > 0.
        labels: (N,) in 0..n_outputs-1.
        n_outputs: number of the teacher's classes, of which the labels may cover a few.
    """
    share = accuracy(predicted, labels)
    n_correct = int((predicted == labels).sum())
    return LabeledAccuracy(
        accuracy=share,
        interval=clopper_pearson_interval(n_correct, len(labels)),
        chance=chance_accuracy(predicted, labels, n_outputs),
        n_images=len(labels),
        n_classes=len(np.unique(labels)),
    )


def chance_accuracy(predicted: Classes, labels: Classes, n_outputs: int) -> float:
    """Return the accuracy that answers would have which do not depend on the image.

    It is the larger one of two rates: guessing among the labeled classes, and the answers in the
    shares in which they were given, at random images (as in Cohen's kappa): always the same answer
    is no better than chance, however frequent that class is.

    With labels of a single class, that class is the answer to everything, so that guessing among
    all of the teacher's classes is what remains.
    """
    present = np.unique(labels)
    if len(present) == 1:
        return 1 / n_outputs
    rate = 0.0
    for number in present:
        label_share = float((labels == number).mean())
        answer_share = float((predicted == number).mean())
        rate += label_share * answer_share
    return max(rate, 1 / len(present))


def balanced_draw(labels: Classes, n: int, seed: int) -> NDArray[np.int64]:
    """Return the ascending positions of at most `n` images, as equally many per class as there are.

    Args:
        labels: (N,) classes.
        n: most images.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    # The rank of each image within its class: first the first of every class, and so on.
    turns = np.empty(len(labels), dtype=np.int64)
    for number in np.unique(labels):
        places = np.flatnonzero(shuffled == number)
        turns[places] = np.arange(len(places))
    first = np.argsort(turns, kind="stable")[:n]
    return np.sort(order[first])


def seems_softened_twice(logits: NDArray[np.floating[Any]]) -> bool:
    """Return whether logits are probabilities, up to a constant: a softmax was taken before.

    The softmax of the teacher is then one of a softmax, and hardly differs between its classes. If
    z = q + c with q >= 0 and sum(q) = 1, no value lies more than 1 / K below the mean of its row.
    Logits of a trained network do, and those of an untrained one do not reach far above it.

    With two classes the answer is always no: those of a regularized network may be as small.

    Args:
        logits: (N, K), N > 0.
    """
    if logits.shape[1] <= _N_CLASSES_WITHOUT_SIGN:
        return False
    values = logits.astype(np.float64)
    centered = values - values.mean(axis=1, keepdims=True)
    n_outputs = values.shape[1]
    is_probability = centered.min() >= -1 / n_outputs - _TOLERANCE
    largest = centered.max()
    is_confident = _CONFIDENT * (1 - 1 / n_outputs) < largest < 1 + _TOLERANCE
    return bool(is_probability and is_confident)
