"""Margins of labels depend on neither scale nor shift of logits, and chance is no gain."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.learning.label_margins import label_margins, margin_gain

LEVEL = 0.05


def logits_of(n, n_classes, signal, rng):
    """Return random logits in which the label's is larger by `signal` on average."""
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes))
    logits[np.arange(n), labels] += signal
    return logits, labels


def test_the_mean_is_that_of_the_lead_over_the_best_other_class_in_standard_deviations():
    logits = np.array([[3.0, 1.0, -1.0], [0.0, 2.0, 1.0]], dtype=np.float32)
    scale = np.std([2.0, 0.0, -2.0, -1.0, 1.0, 0.0])

    found = label_margins(logits, np.array([0, 2]))

    assert found.mean() == pytest.approx((2 - 1) / 2 / scale)
    # The first image has 1.6 times the mean variance, the second 0.4 times.
    np.testing.assert_allclose(found, np.array([2 - 0.3 * 0.5, -1 + 0.3 * 0.5]) / scale)


def test_neither_the_scale_of_logits_nor_a_constant_of_each_image_changes_margins():
    rng = np.random.default_rng(0)
    logits, labels = logits_of(50, 7, 3.0, rng)
    constants = rng.normal(size=(50, 1))

    found = label_margins(8.0 * logits + constants, labels)

    np.testing.assert_allclose(found, label_margins(logits, labels))


def test_equal_logits_have_no_margin_and_equal_margins_no_gain():
    margins = label_margins(np.ones((30, 4)), np.zeros(30, dtype=np.int64))
    assert (margins == 0).all()
    ones = np.ones(30)
    assert margin_gain(margins, margins) == margin_gain(ones, ones) == (0.0, 1.0)


def test_the_gain_is_a_share_of_the_mean_margin_with_the_p_value_of_the_paired_test():
    before = np.array([1.0, 2.0, 3.0, 2.0])
    gain = margin_gain(before + np.array([0.1, 0.3, 0.2, 0.2]), before)

    assert gain.share == pytest.approx(0.1)
    # t = 0.2 / (0.0816 / 2) = 4.899 with 3 degrees of freedom.
    assert gain.p_value == pytest.approx(0.00813, abs=2e-5)
    assert margin_gain(before, before + np.array([0.1, 0.3, 0.2, 0.2])).p_value > 0.99


def test_a_classifier_that_is_wrong_on_average_is_nothing_to_compare_with():
    before = np.array([-1.0, -2.0, 0.5])
    assert margin_gain(before + np.array([1.0, 2.0, 1.5]), before) == (0.0, 1.0)


@pytest.mark.parametrize("n", [20, 160])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_logits_that_are_equally_good_seldom_have_a_significant_gain(n, noise):
    # Half of the images are hard: margins are far from normal.
    rng = np.random.default_rng(0)
    n_runs = 150
    n_alarms = 0
    for _ in range(n_runs):
        logits, labels = logits_of(n, 20, 6.0, rng)
        logits[: n // 2] *= 3
        first = logits + noise * rng.standard_t(3, size=logits.shape)
        second = logits + noise * rng.standard_t(3, size=logits.shape)
        margins = label_margins(second, labels)
        n_alarms += margin_gain(margins, label_margins(first, labels)).p_value <= LEVEL
    # Within three standard errors of the level.
    assert n_alarms / n_runs <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / n_runs)


def test_a_better_signal_is_found_where_accuracy_cannot_differ():
    rng = np.random.default_rng(0)
    logits, labels = logits_of(160, 20, 8.0, rng)
    worse = logits + 0.7 * rng.normal(size=logits.shape)
    assert (logits.argmax(axis=1) == labels).mean() - (worse.argmax(axis=1) == labels).mean() < 0.02

    gain = margin_gain(label_margins(logits, labels), label_margins(worse, labels))

    assert gain.share > 0.1
    assert gain.p_value < 1e-6
