"""Whether a classifier's outputs are in another order than its classes: the best one-to-one match.

The assignment problem is solved by shortest augmenting paths (Kuhn 1955, Jonker and Volgenant
1987), because SciPy is not a dependency of this project.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]

_N_FOLDS = 2
NO_CLASS = -1


def best_assignment(gains: NDArray[np.int64]) -> Classes:
    """Return a different column for each row, so that the sum of their gains is largest.

    Args:
        gains: (R, C) with R <= C.

    Returns:
        (R,) columns.

    Raises:
        ValueError: there are more rows than columns.
    """
    n_rows, n_columns = gains.shape
    if n_rows > n_columns:
        raise ValueError(f"{n_rows} rows cannot have {n_columns} different columns")
    costs = -gains.astype(np.float64)
    row_prices = np.zeros(n_rows)
    column_prices = np.zeros(n_columns)
    row_of_column = np.full(n_columns, -1)
    for row in range(n_rows):
        _add_row(row, costs, row_prices, column_prices, row_of_column)
    columns = np.empty(n_rows, dtype=np.int64)
    taken = np.flatnonzero(row_of_column >= 0)
    columns[row_of_column[taken]] = taken
    return columns


def _add_row(
    new_row: int,
    costs: NDArray[np.float64],
    row_prices: NDArray[np.float64],
    column_prices: NDArray[np.float64],
    row_of_column: NDArray[np.int64],
) -> None:
    """Assign one more row: Dijkstra's algorithm to the nearest column that is free.

    The prices and the assignment are changed in place.
    """
    n_columns = costs.shape[1]
    distances = np.full(n_columns, np.inf)
    previous = np.full(n_columns, -1)
    is_visited = np.zeros(n_columns, dtype=bool)
    row = new_row
    column = -1
    length = 0.0
    while True:
        reduced = length + costs[row] - row_prices[row] - column_prices
        is_shorter = ~is_visited & (reduced < distances)
        distances[is_shorter] = reduced[is_shorter]
        previous[is_shorter] = column
        candidates = np.where(is_visited, np.inf, distances)
        column = int(candidates.argmin())
        length = float(candidates[column])
        is_visited[column] = True
        if row_of_column[column] < 0:
            break
        row = int(row_of_column[column])

    # The prices keep every reduced cost at zero or above.
    row_prices[new_row] += length
    for other in np.flatnonzero(is_visited):
        difference = length - distances[other]
        column_prices[other] -= difference
        if row_of_column[other] >= 0:
            row_prices[row_of_column[other]] += difference
    # The columns on the path pass their rows on.
    while column >= 0:
        before = int(previous[column])
        row_of_column[column] = new_row if before < 0 else row_of_column[before]
        column = before


def outputs_of_classes(predicted: Classes, labels: Classes, n_classes: int) -> dict[int, int]:
    """Return labeled class -> the output that stands for it, by the best one-to-one match.

    Of equally good matches, the one that leaves more classes in their place is taken.

    Args:
        predicted: (N,) outputs in 0..n_classes-1.
        labels: (N,) in 0..n_classes-1.
        n_classes: K.
    """
    present = np.unique(labels)
    row_of_class = {int(number): row for row, number in enumerate(present)}
    rows = np.array([row_of_class[int(label)] for label in labels])
    counts = np.zeros((len(present), n_classes), dtype=np.int64)
    np.add.at(counts, (rows, predicted), 1)
    # A single image outweighs all classes that stay in their place.
    gains = counts * (len(present) + 1)
    gains[np.arange(len(present)), present] += 1
    columns = best_assignment(gains)
    return {int(number): int(column) for number, column in zip(present, columns, strict=True)}


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
        outputs = outputs_of_classes(predicted[others], labels[others], n_classes)
        class_of_output = np.full(n_classes, NO_CLASS, dtype=np.int64)
        for number, output in outputs.items():
            class_of_output[output] = number
        translated[is_in_fold] = class_of_output[predicted[is_in_fold]]
    return translated


def _folds(labels: Classes) -> Classes:
    """Return the fold of each image; the images of a class take turns."""
    folds = np.empty(len(labels), dtype=np.int64)
    for number in np.unique(labels):
        places = np.flatnonzero(labels == number)
        folds[places] = np.arange(len(places)) % _N_FOLDS
    return folds
