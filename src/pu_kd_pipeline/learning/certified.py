"""What a comparison of two classifiers on the same images allows to promise. NumPy only."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.proportions import Interval, clopper_pearson_interval

Classes = NDArray[np.integer[Any]]


class Share(NamedTuple):
    """A share of some images, with its 95 % interval (Clopper and Pearson 1934)."""

    n_hits: int
    n: int
    value: float
    lower: float
    upper: float


class Confusion(NamedTuple):
    """Images to which the teacher gives one class, and the student another."""

    teacher_class: int
    student_class: int
    n: int
    share: float
    """Of the images of the teacher's class, in (0, 1]."""


def share_of(is_hit: NDArray[np.bool_]) -> Share:
    """Return the share of (N,) images that are hits, N > 0."""
    n = len(is_hit)
    n_hits = int(is_hit.sum())
    interval = clopper_pearson_interval(n_hits, n)
    return Share(n_hits, n, n_hits / n, interval.lower, interval.upper)


def shares_of_classes(
    is_hit: NDArray[np.bool_], classes: Classes, n_classes: int
) -> list[Share | None]:
    """Return the share of hits for each class, None for a class without images.

    Each interval holds for its class alone: of 20 shares, up to one lies outside on average.

    Args:
        is_hit: (N,) bool.
        classes: (N,) in 0..n_classes-1.
        n_classes: K.
    """
    shares: list[Share | None] = []
    for number in range(n_classes):
        of_class = is_hit[classes == number]
        shares.append(share_of(of_class) if len(of_class) else None)
    return shares


def accuracy_bound(agreement: Interval, teacher_accuracy: Interval) -> float:
    """Return a number that the student's accuracy is at least, with 95 % confidence.

    Where student and teacher agree, the student is right if the teacher is, so that accuracy of
    the student >= accuracy of the teacher - (1 - agreement). Both are replaced by the lower limits
    of their 95 % intervals. Each limit is wrong with a probability of at most 2.5 %, and one of
    them with at most 5 % (Bonferroni), whether or not they are of the same images.

    Args:
        agreement: of student and teacher, on images drawn like those that the student will see.
        teacher_accuracy: on images drawn in the same way.

    Returns:
        In [0, 1].
    """
    return max(0.0, teacher_accuracy.lower + agreement.lower - 1.0)


def worst_confusions(
    student: Classes, teacher: Classes, n_classes: int, n_worst: int
) -> list[Confusion]:
    """Return the pairs of classes that most images are confused in, the largest number first.

    Args:
        student: (N,) classes in 0..n_classes-1.
        teacher: (N,) the same.
        n_classes: K.
        n_worst: pairs at most; those without images are left out.
    """
    is_confused = student != teacher
    # A table of all pairs would be too large for thousands of classes.
    pairs = teacher[is_confused].astype(np.int64) * n_classes + student[is_confused]
    found, counts = np.unique(pairs, return_counts=True)
    n_of_class = np.bincount(teacher, minlength=n_classes)
    confusions = []
    # Stable: pairs with equal numbers stay in the order of the classes.
    for place in np.argsort(-counts, kind="stable")[:n_worst]:
        teacher_class, student_class = divmod(int(found[place]), n_classes)
        n = int(counts[place])
        share = n / int(n_of_class[teacher_class])
        confusions.append(Confusion(teacher_class, student_class, n, share))
    return confusions
