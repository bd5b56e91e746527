"""The best one-to-one match of labels and outputs: optimal, and honest about random answers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.class_order import (
    best_assignment,
    in_matched_order,
    outputs_of_classes,
)
from pu_kd_pipeline.learning.proportions import improvement_p_value


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_an_assignment_is_the_best_of_all(n_rows, n_more, seed):
    n_columns = n_rows + n_more
    gains = np.random.default_rng(seed).integers(0, 6, (n_rows, n_columns))
    columns = best_assignment(gains)
    rows = np.arange(n_rows)
    best = max(gains[rows, list(chosen)].sum() for chosen in permutations(range(n_columns), n_rows))

    assert len(set(columns.tolist())) == n_rows
    assert gains[rows, columns].sum() == best


def test_more_rows_than_columns_are_refused():
    with pytest.raises(ValueError, match="3 rows cannot have 2 different columns"):
        best_assignment(np.zeros((3, 2), dtype=np.int64))


def test_reversed_classes_are_found_and_classes_without_images_stay():
    labels = np.repeat([0, 1, 2, 5], 10)
    predicted = 9 - labels

    assert outputs_of_classes(predicted, labels, 10) == {0: 9, 1: 8, 2: 7, 5: 4}
    assert outputs_of_classes(labels, labels, 10) == {0: 0, 1: 1, 2: 2, 5: 5}


def test_a_class_that_is_never_right_stays_in_its_place():
    labels = np.array([0, 0, 1, 1])
    predicted = np.array([0, 0, 3, 4])
    matched = outputs_of_classes(predicted, labels, 5)

    assert matched[0] == 0
    assert matched[1] in (3, 4)
    # Nothing was answered for class 2: it keeps its own output.
    assert outputs_of_classes(np.array([0, 0]), np.array([0, 2]), 5)[2] == 2


def test_reversed_answers_are_right_after_the_match():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 8)
    predicted = 9 - labels
    is_wrong = rng.random(80) < 0.1
    predicted[is_wrong] = rng.integers(0, 10, is_wrong.sum())
    matched = in_matched_order(predicted, labels, 10)

    assert (matched == labels).mean() > 0.85
    assert improvement_p_value(matched == labels, predicted == labels) < 1e-10


def test_a_match_does_not_make_random_answers_look_better():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(10), 8)
    n_significant = 0
    gained = []
    for _ in range(100):
        predicted = rng.integers(0, 10, len(labels))
        matched = in_matched_order(predicted, labels, 10)
        p_value = improvement_p_value(matched == labels, predicted == labels)
        n_significant += p_value < 0.05
        gained.append((matched == labels).mean() - (predicted == labels).mean())

    assert n_significant <= 10
    # A match of the same images would gain about 15 points.
    assert abs(np.mean(gained)) < 0.03


def test_an_imagenet_teacher_with_a_few_labeled_classes_is_matched_quickly():
    labels = np.repeat(np.arange(100, 120), 10)
    # Outputs that are off by one, as with a background class.
    matched = outputs_of_classes(labels + 1, labels, 1000)

    assert matched == {number: number + 1 for number in range(100, 120)}
