"""When a teacher is usable, low, at chance or unknown; and how images are drawn to find out."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.learning.proportions import clopper_pearson_interval
from pu_kd_pipeline.learning.teacher_check import (
    Verdict,
    balanced_draw,
    chance_accuracy,
    labeled_accuracy,
    seems_softened_twice,
)


def answers(labels, accuracy, n_outputs, rng):
    """Return answers that are right with a probability, and else any class."""
    predicted = labels.copy()
    is_random = rng.random(len(labels)) >= accuracy
    predicted[is_random] = rng.integers(0, n_outputs, is_random.sum())
    return predicted


def found(labels, accuracy, n_outputs, n_runs=60):
    """Return the results of many teachers."""
    rng = np.random.default_rng(0)
    return [
        labeled_accuracy(answers(labels, accuracy, n_outputs, rng), labels, n_outputs)
        for _ in range(n_runs)
    ]


@pytest.mark.parametrize("n_classes", [2, 10, 20])
@pytest.mark.parametrize("n_outputs", [20, 1000])
def test_with_8_images_a_class_no_good_teacher_is_refused(n_classes, n_outputs):
    labels = np.repeat(np.arange(n_classes), 8)
    for accuracy in (0.75, 0.9, 0.97):
        results = found(labels, accuracy, n_outputs)
        assert not any(result.is_refused for result in results), accuracy


@pytest.mark.parametrize("n_classes", [10, 20])
@pytest.mark.parametrize("n_outputs", [20, 1000])
def test_with_8_images_a_class_nearly_every_random_teacher_is_refused(n_classes, n_outputs):
    labels = np.repeat(np.arange(n_classes), 8)
    results = found(labels, 0.0, n_outputs)

    assert np.mean([result.is_refused for result in results]) > 0.96


def test_half_of_the_way_from_chance_is_not_refused():
    labels = np.repeat(np.arange(10), 8)
    results = found(labels, 0.4, 10)

    assert not any(result.is_refused for result in results)
    assert np.mean([result.verdict == Verdict.LOW for result in results]) > 0.1


def test_fewer_than_20_images_never_refuse_a_teacher():
    labels = np.repeat(np.arange(10), 2)[:19]
    result = labeled_accuracy((labels + 1) % 10, labels, 10)

    assert result.verdict == Verdict.CHANCE
    assert not result.is_refused
    assert result.interval == clopper_pearson_interval(0, 19)


def test_two_right_answers_are_no_evidence():
    labels = np.array([0, 1])
    assert labeled_accuracy(labels, labels, 2).verdict == Verdict.UNKNOWN


def test_always_the_most_frequent_class_is_chance():
    labels = np.repeat([0, 1], [90, 10])
    constant = labeled_accuracy(np.zeros(100, dtype=np.int64), labels, 2)
    # 85 % of either class are right, which is less than always answering 0, and no chance.
    predicted = labels.copy()
    predicted[::7] = 1 - predicted[::7]
    informed = labeled_accuracy(predicted, labels, 2)

    assert constant.accuracy == constant.chance == 0.9
    assert constant.verdict == Verdict.CHANCE or not constant.is_refused
    assert informed.accuracy == 0.85
    assert informed.chance == pytest.approx(0.9 * 0.78 + 0.1 * 0.22, abs=0.02)
    assert informed.verdict == Verdict.USABLE


def test_chance_is_that_of_the_labeled_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 8)
    of_1000 = rng.integers(0, 1000, len(labels))

    assert chance_accuracy(of_1000, labels, 1000) == 1 / 20
    result = labeled_accuracy(np.where(np.arange(160) < 8, labels, of_1000 + 1000), labels, 2000)
    # 5 % of 20 classes: what guessing among them gives
    assert result.is_refused


def test_images_of_one_class_are_compared_with_all_classes_of_the_teacher():
    labels = np.full(30, 3)
    assert chance_accuracy(labels, labels, 10) == 0.1
    assert labeled_accuracy(labels, labels, 10).verdict == Verdict.USABLE
    assert labeled_accuracy(np.full(30, 4), labels, 10).is_refused


def test_a_draw_has_equally_many_images_of_each_class():
    labels = np.repeat([0, 1, 2], [500, 100, 5])
    rows = balanced_draw(labels, 65, seed=0)

    assert np.bincount(labels[rows]).tolist() == [30, 30, 5]
    assert np.all(np.diff(rows) > 0)
    assert rows.tolist() == balanced_draw(labels, 65, seed=0).tolist()
    assert rows.tolist() != balanced_draw(labels, 65, seed=1).tolist()


def test_a_draw_of_more_classes_than_images_has_one_of_as_many_as_possible():
    labels = np.repeat(np.arange(1000), 3)
    rows = balanced_draw(labels, 200, seed=0)

    assert len(set(labels[rows])) == 200
    assert balanced_draw(np.array([], dtype=np.int64), 200, seed=0).tolist() == []


def softmax(values):
    exponents = np.exp(values - values.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n_classes", [3, 10, 1000])
def test_a_softmax_of_a_softmax_is_recognized(n_classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, n_classes))
    logits[np.arange(50), rng.integers(0, n_classes, 50)] += 12
    once = softmax(logits)

    assert seems_softened_twice(np.log(softmax(once)))
    assert seems_softened_twice(once)
    assert not seems_softened_twice(logits)
    assert not seems_softened_twice(np.log(once))
    # An untrained network
    assert not seems_softened_twice(0.01 * rng.normal(size=(50, n_classes)))


def test_small_logits_of_two_classes_are_no_sign_of_a_softmax():
    # Within 0.5 of their mean, as a network with strong weight decay gives them
    signs = np.where(np.arange(50) % 2 == 0, 1, -1)
    logits = 0.49 * np.stack([signs, -signs], axis=1)
    assert not seems_softened_twice(logits)
