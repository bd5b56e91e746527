"""Bounds and counts of a certificate."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.learning.certified import (
    accuracy_bound,
    share_of,
    shares_of_classes,
    worst_confusions,
)
from pu_kd_pipeline.learning.proportions import Interval, clopper_pearson_interval


def test_a_share_has_the_exact_interval():
    found = share_of(np.array([True] * 19 + [False]))
    assert (found.n_hits, found.n, found.value) == (19, 20, 0.95)
    assert Interval(found.lower, found.upper) == clopper_pearson_interval(19, 20)


def test_a_class_without_images_has_no_share():
    is_hit = np.array([True, False, True])
    shares = shares_of_classes(is_hit, np.array([2, 2, 0]), 3)
    assert shares[0] == share_of(np.array([True]))
    assert shares[1] is None
    assert shares[2] == share_of(np.array([True, False]))


@pytest.mark.parametrize("same_images", [True, False])
@pytest.mark.parametrize(("teacher_errs", "student_differs"), [(0.05, 0.1), (0.3, 0.02)])
def test_the_bound_is_above_the_accuracy_in_less_than_one_of_twenty_draws(
    same_images, teacher_errs, student_differs
):
    """The worst case: wherever they differ, the teacher is right and the student is wrong."""
    rng = np.random.default_rng(0)
    truth = 1.0 - teacher_errs - student_differs
    n_wrong = 0
    n_draws = 400
    for _ in range(n_draws):
        draw = rng.uniform(size=300)
        other_draw = draw if same_images else rng.uniform(size=300)
        is_equal = draw >= student_differs
        teacher_right = other_draw < 1.0 - teacher_errs
        agreement = share_of(is_equal)
        of_teacher = share_of(teacher_right)
        bound = accuracy_bound(
            Interval(agreement.lower, agreement.upper), Interval(of_teacher.lower, of_teacher.upper)
        )
        n_wrong += bound > truth
    assert n_wrong / n_draws <= 0.05


def test_the_bound_is_no_less_than_nothing():
    assert accuracy_bound(Interval(0.3, 0.5), Interval(0.4, 0.6)) == 0.0
    assert accuracy_bound(Interval(1.0, 1.0), Interval(0.9, 1.0)) == pytest.approx(0.9)


def test_confusions_are_counted_as_a_loop_counts_them():
    rng = np.random.default_rng(0)
    teacher = rng.integers(0, 4, 200)
    student = np.where(rng.uniform(size=200) < 0.6, teacher, rng.integers(0, 4, 200))
    counts = {}
    for of_teacher, of_student in zip(teacher, student, strict=True):
        if of_teacher != of_student:
            pair = (int(of_teacher), int(of_student))
            counts[pair] = counts.get(pair, 0) + 1
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = worst_confusions(student, teacher, 4, 5)
    assert [((c.teacher_class, c.student_class), c.n) for c in found] == expected[:5]
    for confusion in found:
        of_class = (teacher == confusion.teacher_class).sum()
        assert confusion.share == confusion.n / of_class

    assert worst_confusions(teacher, teacher, 4, 5) == []
