"""Quality of a classifier, a ranking or a selection, given the true labels. NumPy only.

All are shares in [0, 1], or nan where the question has no answer (a class without samples).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.integer[Any]]


class SelectionQuality(NamedTuple):
    """Precision and recall of a selection."""

    precision: float
    """Share of the selected that are relevant, nan where nothing is selected."""
    recall: float
    """Share of the relevant that are selected, nan where nothing is relevant."""


def accuracy(predicted: Classes, labels: Classes) -> float:
    """Return the share of (N,) `predicted` classes that equal the (N,) `labels`.

    Raises:
        ValueError: the shapes differ or N is 0.
    """
    _check_vectors(predicted, labels)
    is_correct = predicted == labels
    return float(is_correct.mean())


def agreement(student_classes: Classes, teacher_classes: Classes) -> float:
    """Return the share of samples for which student and teacher predict the same class.

    The prediction may be right or wrong.

    Raises:
        ValueError: the shapes differ or N is 0.
    """
    return accuracy(student_classes, teacher_classes)


def chance_agreement(first: Classes, second: Classes) -> float:
    """Return the share of equal classes that two unrelated vectors of classes would have.

    Both keep their own class frequencies, as in Cohen's kappa (1960): a model that always predicts
    one class is as accurate as that class is frequent, and knows nothing.

    Args:
        first: (N,) classes, at least 0; N > 0.
        second: (N,) classes, at least 0.

    Raises:
        ValueError: the shapes differ or N is 0.
    """
    _check_vectors(first, second)
    n_classes = 1 + int(max(first.max(), second.max()))
    first_counts = np.bincount(first, minlength=n_classes)
    second_counts = np.bincount(second, minlength=n_classes)
    # Of integers: the last bit of a sum of shares depends on where they lie in memory.
    n_equal_pairs = int(first_counts @ second_counts)
    return n_equal_pairs / len(first) ** 2


def per_class_accuracy(predicted: Classes, labels: Classes, n_classes: int) -> NDArray[np.float64]:
    """Return for each class the share of its samples that are predicted correctly (its recall).

    Args:
        predicted: (N,) classes; N > 0.
        labels: (N,) in 0..n_classes-1.
        n_classes: K.

    Returns:
        (K,) float64, nan for a class without samples.

    Raises:
        ValueError: the shapes differ, N is 0 or a label is out of range.
    """
    _check_vectors(predicted, labels)
    smallest = labels.min()
    largest = labels.max()
    if smallest < 0 or largest >= n_classes:
        raise ValueError(f"labels must lie in 0..{n_classes - 1}, got {smallest}..{largest}")

    # bincount would count labels beyond n_classes too: the check above keeps the shape (K,).
    n_samples = np.bincount(labels, minlength=n_classes)
    is_correct = predicted == labels
    correct_labels = labels[is_correct]
    n_correct = np.bincount(correct_labels, minlength=n_classes)

    # `where` leaves the nan of empty classes in place, without NumPy's warning on 0 / 0.
    shares = np.full(n_classes, np.nan)
    has_samples = n_samples > 0
    np.divide(n_correct, n_samples, out=shares, where=has_samples)
    return shares


def area_under_roc(scores: NDArray[np.floating[Any]], is_positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive outscores a negative, ties counting half.

    Args:
        scores: (N,) larger means more positive; N > 0.
        is_positive: (N,) bool.

    Returns:
        The area, nan where one of the two classes is empty.

    Raises:
        ValueError: the shapes differ, N is 0 or a score is nan.
    """
    _check_vectors(scores, is_positive)
    n_nan = int(np.isnan(scores).sum())
    if n_nan > 0:
        raise ValueError(f"scores hold {n_nan} nan, which cannot be ranked")
    positive = scores[is_positive]
    negative = np.sort(scores[~is_positive])
    n_positive = len(positive)
    n_negative = len(negative)
    if n_positive == 0 or n_negative == 0:
        return float("nan")

    # For each positive; a tied negative is in the second count only, so it counts half below.
    n_below = np.searchsorted(negative, positive, side="left")
    n_not_above = np.searchsorted(negative, positive, side="right")
    twice_n_below = n_below + n_not_above
    share = twice_n_below.mean() / (2 * n_negative)
    return float(share)


def selection_quality(selected: NDArray[np.bool_], relevant: NDArray[np.bool_]) -> SelectionQuality:
    """Return precision and recall of a selection.

    Args:
        selected: (N,) bool; N > 0.
        relevant: (N,) bool.

    Raises:
        ValueError: the shapes differ or N is 0.
    """
    _check_vectors(selected, relevant)

    is_hit = selected & relevant
    n_hits = int(is_hit.sum())
    n_selected = int(selected.sum())
    n_relevant = int(relevant.sum())
    return SelectionQuality(
        precision=_share(n_hits, n_selected),
        recall=_share(n_hits, n_relevant),
    )


def _share(n_part: int, n_total: int) -> float:
    # nan and not 0: an empty selection has no precision, neither good nor bad.
    if n_total == 0:
        return float("nan")
    return n_part / n_total


def _check_vectors(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(
            "expected two vectors of one length above 0, "
            f"got shapes {first.shape} and {second.shape}"
        )
