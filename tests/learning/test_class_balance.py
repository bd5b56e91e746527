"""Drawing the classes of a pool evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.class_balance import balanced_probabilities

NO_LIMIT = 1e9


def slow_balanced(probabilities: list[float], classes: list[int], max_factor: float) -> list[float]:
    """The documented formula, image by image."""
    total = sum(probabilities)
    drawn = [q / total for q in probabilities]
    shares = {
        k: sum(q for q, c in zip(drawn, classes, strict=True) if c == k) for k in set(classes)
    }
    n_drawn = sum(share > 0 for share in shares.values())
    values = []
    for q, k in zip(drawn, classes, strict=True):
        factor = min(max_factor, 1 / (n_drawn * shares[k])) if shares[k] > 0 else 0.0
        values.append(q * factor)
    return [value / sum(values) for value in values]


@settings(deadline=None, max_examples=60)
@given(
    images=st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 5)), min_size=1, max_size=30),
    max_factor=st.sampled_from([1.0, 1.5, 3.0, NO_LIMIT]),
)
def test_balanced_probabilities_are_the_formula(
    images: list[tuple[float, int]], max_factor: float
) -> None:
    probabilities = [q for q, _ in images]
    classes = [k for _, k in images]
    balanced = balanced_probabilities(
        np.array(probabilities), np.array(classes), max_factor=max_factor
    )
    assert balanced.sum() == pytest.approx(1)
    np.testing.assert_allclose(balanced, slow_balanced(probabilities, classes, max_factor))
    if max_factor == NO_LIMIT:
        shares = np.bincount(classes, weights=balanced)
        np.testing.assert_allclose(shares[shares > 0], 1 / len(set(classes)))


def test_a_class_of_one_image_is_not_a_half_of_every_batch() -> None:
    classes = np.array([0] * 999 + [1])
    equal = np.full(1000, 1 / 1000)
    balanced = balanced_probabilities(equal, classes, max_factor=10.0)
    assert balanced[999] / balanced[0] == pytest.approx(10 / 0.5, rel=0.01)
    assert balanced[999] < 0.02
    # A factor of one changes nothing but the frequent classes, which all images then share.
    same = balanced_probabilities(equal, np.zeros(1000, dtype=np.int64), max_factor=1.0)
    np.testing.assert_allclose(same, equal)


def test_images_that_are_never_drawn_stay_so() -> None:
    balanced = balanced_probabilities(
        np.array([0.5, 0.5, 0.0]), np.array([0, 0, 1]), max_factor=NO_LIMIT
    )
    assert balanced.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("probabilities", "max_factor", "message"),
    [
        ([0.0, 0.0], 2.0, "positive sum"),
        ([1.0, -1.0], 2.0, "positive sum"),
        ([np.nan, 1.0], 2.0, "positive sum"),
        ([1.0, 1.0], 0.5, "max_factor must be at least 1"),
    ],
)
def test_what_cannot_be_balanced_is_refused(
    probabilities: list[float], max_factor: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        balanced_probabilities(np.array(probabilities), np.array([0, 1]), max_factor=max_factor)
