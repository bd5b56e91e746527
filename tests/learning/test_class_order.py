"""The best one-to-one match of labels and outputs: optimal, and honest about random answers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.class_order import (
    in_matched_order,
    outputs_of_classes,
)
from pu_kd_pipeline.learning.proportions import count_discordant, mcnemar_p_value


def p_value_of_gain(is_correct, was_correct):
    n_gained, n_lost = count_discordant(is_correct, was_correct)
    return mcnemar_p_value(n_gained, n_lost, alternative="greater")


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_match_is_the_best_of_all(n_classes, n_images, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n_images)
    predicted = rng.integers(0, n_classes, n_images)
    present = np.unique(labels).tolist()

    def quality(outputs):
        """Return the number of images that are right, and of classes that stay in their place."""
        matched = np.array([outputs[label] for label in labels.tolist()])
        n_in_place = sum(number == output for number, output in outputs.items())
        return int((matched == predicted).sum()), n_in_place

    best = (0, 0)
    for chosen in permutations(range(n_classes), len(present)):
        best = max(best, quality(dict(zip(present, chosen, strict=True))))
    found = outputs_of_classes(predicted, labels, n_classes)

    assert list(found) == present
    assert len(set(found.values())) == len(present)
    assert quality(found) == best


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
    assert p_value_of_gain(matched == labels, predicted == labels) < 1e-10


def test_a_match_does_not_make_random_answers_look_better():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(10), 8)
    n_significant = 0
    gained = []
    for _ in range(100):
        predicted = rng.integers(0, 10, len(labels))
        matched = in_matched_order(predicted, labels, 10)
        p_value = p_value_of_gain(matched == labels, predicted == labels)
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
