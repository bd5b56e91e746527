"""Whether outputs are in another order than the classes: the best one-to-one match."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]

_N_FOLDS = 2
NO_CLASS = -1


def outputs_of_classes(predicted: Classes, labels: Classes, n_classes: int) -> dict[int, int]:
    """Return labeled class -> the output that stands for it, by the best one-to-one match.

    Of equally good matches, the one that leaves more classes in their place is taken.

    Args:
        predicted: (N,) outputs in 0..n_classes-1.
        labels: (N,) in 0..n_classes-1.
        n_classes: K.
    """
    # imported late: it takes a second
    from scipy.optimize import linear_sum_assignment

    present, row_of_label = np.unique(labels, return_inverse=True)
    n_present = len(present)
    counts = np.zeros((n_present, n_classes), dtype=np.int64)
    np.add.at(counts, (row_of_label, predicted), 1)
    # A single image outweighs all classes that stay in their place.
    gains = counts * (n_present + 1)
    rows = np.arange(n_present)
    gains[rows, present] += 1
    # Every row has a column, because no more classes are present than there are.
    _, outputs = linear_sum_assignment(gains, maximize=True)
    return dict(zip(present.tolist(), outputs.tolist(), strict=True))


def in_matched_order(predicted: Classes, labels: Classes, n_classes: int) -> Classes:
    """Return the (N,) classes that predictions stand for in the order that matches best.

    Each image is translated by the match of the other images of its class and the rest
    (cross-fitting): a match of the same images would make any classifier look better. Outputs that
    match no class are -1.
    """
    folds = _folds(labels)
    translated = np.full(len(labels), NO_CLASS, dtype=np.int64)
    for fold in range(_N_FOLDS):
        is_in_fold = folds == fold
        others = ~is_in_fold
        if not others.any():
            continue
        other_outputs = predicted[others]
        other_labels = labels[others]
        outputs = outputs_of_classes(other_outputs, other_labels, n_classes)
        class_of_output = np.full(n_classes, NO_CLASS, dtype=np.int64)
        for number, output in outputs.items():
            class_of_output[output] = number
        in_fold = predicted[is_in_fold]
        translated[is_in_fold] = class_of_output[in_fold]
    return translated


def _folds(labels: Classes) -> Classes:
    """Return the fold of each image; the images of a class take turns."""
    folds = np.empty(len(labels), dtype=np.int64)
    for number in np.unique(labels):
        places = np.flatnonzero(labels == number)
        turns = np.arange(len(places))
        folds[places] = turns % _N_FOLDS
    return folds
