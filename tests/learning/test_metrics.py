"""Metrics against scikit-learn, and where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score

from pu_kd_pipeline.learning.metrics import (
    accuracy,
    agreement,
    area_under_roc,
    per_class_accuracy,
    selection_quality,
)

seeds = st.integers(0, 10_000)


def draw_labels(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true labels of n samples, in 0..4."""
    rng = np.random.default_rng(seed)
    predicted, labels = rng.integers(5, size=(2, n))
    return predicted, labels


@settings(deadline=None, max_examples=30)
@given(seed=seeds, n=st.integers(1, 60))
def test_accuracy_and_agreement_equal_scikit_learn(seed: int, n: int) -> None:
    predicted, labels = draw_labels(seed, n)
    expected = accuracy_score(labels, predicted)

    assert accuracy(predicted, labels) == pytest.approx(expected)
    # Agreement is symmetric.
    assert agreement(predicted, labels) == pytest.approx(expected)
    assert agreement(labels, predicted) == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, n=st.integers(1, 60))
def test_per_class_accuracy_equals_the_recall_of_scikit_learn(seed: int, n: int) -> None:
    predicted, labels = draw_labels(seed, n)
    # One class more than there are, so that one class has no samples.
    per_class = per_class_accuracy(predicted, labels, 6)
    expected = recall_score(labels, predicted, labels=range(6), average=None, zero_division=np.nan)

    assert_allclose(per_class, expected)
    assert np.isnan(per_class[5])


@settings(deadline=None, max_examples=40)
@given(seed=seeds, n=st.integers(1, 60), n_levels=st.integers(1, 30))
def test_area_under_roc_equals_scikit_learn_with_ties(seed: int, n: int, n_levels: int) -> None:
    rng = np.random.default_rng(seed)
    # Few levels give many ties.
    scores = rng.integers(n_levels, size=n + 1).astype(float)
    is_positive = np.append(rng.random(n) < 0.4, True)
    area = area_under_roc(scores, is_positive)

    # scikit-learn refuses to compute an area without negatives.
    if is_positive.all():
        assert math.isnan(area)
        return

    expected = roc_auc_score(is_positive, scores)

    assert area == pytest.approx(expected)

    reversed_area = area_under_roc(-scores, is_positive)
    assert reversed_area == pytest.approx(1 - area)

    # Only the order of the scores matters.
    monotone_scores = np.exp(scores / 5)
    monotone_area = area_under_roc(monotone_scores, is_positive)

    assert monotone_area == pytest.approx(area)


def test_area_under_roc_without_positives_is_nan() -> None:
    scores = np.arange(3.0)
    no_positives = np.zeros(3, dtype=bool)
    area = area_under_roc(scores, no_positives)

    assert math.isnan(area)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, n=st.integers(1, 40))
def test_selection_quality_equals_scikit_learn(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    selected, relevant = rng.random((2, n)) < 0.3

    quality = selection_quality(selected, relevant)
    precision = precision_score(relevant, selected, zero_division=np.nan)
    recall = recall_score(relevant, selected, zero_division=np.nan)

    assert_allclose(quality.precision, precision)
    assert_allclose(quality.recall, recall)


def test_vectors_and_labels_that_do_not_fit_are_refused() -> None:
    two = np.zeros(2, dtype=int)
    three = np.zeros(3, dtype=int)
    nothing = np.zeros(0, dtype=bool)
    too_large = np.array([0, 7])

    with pytest.raises(ValueError, match=r"one length above 0, got shapes \(2,\) and \(3,\)"):
        accuracy(two, three)
    with pytest.raises(ValueError, match="one length above 0"):
        selection_quality(nothing, nothing)
    with pytest.raises(ValueError, match=r"labels must lie in 0..3, got 0..7"):
        per_class_accuracy(two, too_large, 4)


def test_scores_with_nan_are_refused() -> None:
    scores = np.array([np.nan, 1.0])
    is_positive = np.array([True, False])

    with pytest.raises(ValueError, match="scores hold 1 nan"):
        area_under_roc(scores, is_positive)
