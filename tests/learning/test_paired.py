"""Paired statistics, against slow references, simulations and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pu_kd_pipeline.learning.paired import (
    PairedDifference,
    gap_closed,
    paired_difference,
    paired_mean_difference,
)


def correct(n_both: int, n_first: int, n_second: int, n_none: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which images two models classify correctly, by the four counts."""
    counts = [n_both, n_first, n_second, n_none]
    first = np.repeat([True, True, False, False], counts)
    second = np.repeat([True, False, True, False], counts)
    return first, second


def test_without_discordant_images_the_difference_is_zero_and_its_interval_is_not() -> None:
    few = paired_difference(*correct(9, 0, 0, 1))
    many = paired_difference(*correct(900, 0, 0, 100))
    assert few.difference == many.difference == 0
    assert few.p_value == many.p_value == 1
    # Ten images cannot exclude a difference of 10 points; a thousand exclude one of 1 point.
    assert few.lower < -0.1 < 0.1 < few.upper
    assert -0.01 < many.lower < 0 < many.upper < 0.01


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one length above 0"):
        paired_difference(np.ones(3, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match="one length above 0"):
        paired_difference(np.ones(0, bool), np.ones(0, bool))
    with pytest.raises(ValueError, match="one shape"):
        paired_mean_difference(np.ones((2, 3), bool), np.ones((3, 3), bool))


@pytest.mark.parametrize("counts", [(450, 17, 6, 27), (5, 3, 0, 2), (0, 9, 0, 0)])
def test_exchanging_the_models_changes_the_sign_alone(counts: tuple[int, ...]) -> None:
    first, second = correct(*counts)
    one = paired_difference(first, second)
    other = paired_difference(second, first)
    reversed_other = (-other.difference, -other.upper, -other.lower, other.p_value)
    assert reversed_other == pytest.approx(one)


def test_the_order_of_the_images_does_not_matter() -> None:
    first, second = correct(450, 17, 6, 27)
    order = np.random.default_rng(0).permutation(500)
    assert paired_difference(first[order], second[order]) == paired_difference(first, second)


def test_pairs_show_what_two_independent_samples_hide() -> None:
    # 97.6 % against 95.4 % of 500 images, as in the demo. Two independent shares differ so much by
    # chance: their standard errors add up to 1.2 points, times 1.96.
    found = paired_difference(*correct(473, 15, 4, 8))
    assert found.difference == pytest.approx(0.022)
    # 4 or fewer of 19 fair coins, or 15 or more
    n_extreme = 2 * sum(math.comb(19, k) for k in range(5))
    assert found.p_value == pytest.approx(n_extreme / 2**19)
    assert found.is_significant
    assert found.lower > 0


def test_interval_and_test_never_contradict_each_other() -> None:
    for n_first in range(60):
        for n_second in range(n_first + 1):
            n_both = 200 - n_first - n_second
            found = paired_difference(*correct(n_both, n_first, n_second, 0))
            excludes_zero = found.lower > 0 or found.upper < 0
            assert excludes_zero == found.is_significant, (n_first, n_second)
            assert found.lower <= found.difference <= found.upper


@pytest.mark.parametrize(
    ("n", "n_first_share", "n_second_share"),
    [(30, 0.1, 0.1), (100, 0.02, 0.02), (500, 0.03, 0.008), (200, 0.2, 0.05), (500, 0.3, 0.3)],
)
def test_the_interval_covers_the_true_difference_as_often_as_it_says(
    n: int, n_first_share: float, n_second_share: float
) -> None:
    rng = np.random.default_rng(0)
    shares = [n_first_share, n_second_share, 1 - n_first_share - n_second_share]
    truth = n_first_share - n_second_share
    n_covered = 0
    n_trials = 1000
    for n_first, n_second, n_same in rng.multinomial(n, shares, size=n_trials):
        found = paired_difference(*correct(n_same, n_first, n_second, 0))
        n_covered += found.lower <= truth <= found.upper
    # 2.5 standard errors of the simulation below 95 %.
    assert n_covered / n_trials >= 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / n_trials)


# --- several seeds ---


def students(
    rng: np.random.Generator, n_seeds: int, n_images: int, quality: float, seed_noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (S, N) twice: two methods on images that are easy or hard for both."""
    difficulty = rng.normal(0, 1.5, n_images)
    matrices = []
    for strength in (quality, 0.0):
        of_seeds = rng.normal(strength, seed_noise, (n_seeds, 1))
        noise = rng.normal(0, 0.5, (n_seeds, n_images))
        matrices.append(of_seeds + 1.5 - difficulty + noise > 0)
    return matrices[0], matrices[1]


def test_one_seed_is_tested_exactly() -> None:
    first, second = correct(450, 17, 6, 27)
    several = paired_mean_difference(first[None], second[None])
    assert several == paired_difference(first, second)


def test_methods_that_do_not_differ_are_rarely_called_different() -> None:
    rng = np.random.default_rng(0)
    found = [
        paired_mean_difference(*students(rng, 3, 200, quality=0.0, seed_noise=0.3))
        for _ in range(150)
    ]
    # 5 % and two standard errors of this simulation.
    assert np.mean([one.is_significant for one in found]) <= 0.086


def test_a_clear_difference_is_found_over_seeds() -> None:
    rng = np.random.default_rng(0)
    found = paired_mean_difference(*students(rng, 3, 500, quality=1.0, seed_noise=0.05))
    assert found.is_significant
    assert 0 < found.lower < found.difference < found.upper


def test_seeds_that_disagree_widen_the_interval() -> None:
    first, second = correct(400, 40, 10, 50)
    agreeing = paired_mean_difference(np.stack([first] * 3), np.stack([second] * 3))
    # The same mean over seeds, from one seed that gains much and one that loses.
    mixed_first = np.stack([first, first | second, second])
    mixed_second = np.stack([second, second & first, first])
    disagreeing = paired_mean_difference(mixed_first, mixed_second)
    assert agreeing.is_significant
    assert not disagreeing.is_significant


@pytest.mark.parametrize(("n_first", "n_second"), [(4, 0), (5, 0), (7, 1)])
def test_seeds_that_agree_do_not_make_few_images_significant(n_first: int, n_second: int) -> None:
    first, second = correct(900, n_first, n_second, 100 - n_first - n_second)
    one = paired_difference(first, second)
    three = paired_mean_difference(np.stack([first] * 3), np.stack([second] * 3))
    assert not one.is_significant
    assert not three.is_significant
    assert three.lower <= 0 < three.difference < three.upper


def test_equal_students_of_all_seeds_do_not_differ() -> None:
    first, _ = correct(90, 0, 0, 10)
    found = paired_mean_difference(np.stack([first] * 3), np.stack([first] * 3))
    assert (found.difference, found.p_value) == (0, 1)
    assert found.lower < 0 < found.upper


def test_exchanging_the_methods_changes_the_sign_alone() -> None:
    rng = np.random.default_rng(3)
    first, second = students(rng, 4, 100, quality=0.3, seed_noise=0.1)
    one = paired_mean_difference(first, second)
    other = paired_mean_difference(second, first)
    assert other == pytest.approx(
        PairedDifference(-one.difference, -one.upper, -one.lower, one.p_value)
    )


def test_the_interval_over_seeds_is_that_of_students_t() -> None:
    # The images of a seed do not differ, so that seeds are the only source of chance: of so many
    # images, the two of the adjustment do not matter.
    n_images = 1_000_000
    first = np.repeat([[True], [True], [False]], n_images, axis=1)
    second = np.zeros((3, n_images), dtype=bool)
    found = paired_mean_difference(first, second)
    error = 1 / 3  # of the mean of 1, 1, 0
    # With 2 degrees of freedom the distribution has a closed form.
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    t = found.difference / error
    assert found.difference == pytest.approx(2 / 3)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-4)
    assert found.lower == pytest.approx(2 / 3 - quantile * error, rel=1e-4)
    assert found.upper == 1.0


# --- the share of a gap ---


def three_methods(
    rng: np.random.Generator, n_seeds: int, n_images: int, closed: float, seed_noise: float
) -> list[np.ndarray]:
    """Return (S, N) of a method that closes a share of the gap, of the control and of the goal.

    Each image that the control gets wrong and the goal gets right is right with that probability.
    """
    is_control_right = rng.random(n_images) < 0.5
    is_goal_right = is_control_right | (rng.random(n_images) < 0.4)
    is_closed = rng.random(n_images) < closed
    is_student_right = np.where(is_closed, is_goal_right, is_control_right)
    methods = []
    for is_right in (is_student_right, is_control_right, is_goal_right):
        flip_share = np.clip(rng.normal(0.1, seed_noise, (n_seeds, 1)), 0, 0.5)
        is_flipped = rng.random((n_seeds, n_images)) < flip_share
        methods.append(is_right ^ is_flipped)
    return methods


def test_the_ends_of_a_gap_are_0_and_1() -> None:
    _, control, goal = three_methods(np.random.default_rng(0), 3, 500, 0.5, 0.01)
    at_control = gap_closed(control, control, goal)
    at_goal = gap_closed(goal, control, goal)
    assert at_control is not None
    assert at_goal is not None
    assert at_control.share == 0
    assert at_goal.share == 1
    # Images that were not tested could turn both around.
    assert at_control.lower < 0 < at_control.upper
    assert at_goal.lower < 1 < at_goal.upper


def test_there_is_no_share_of_a_gap_that_chance_explains() -> None:
    student, control, goal = three_methods(np.random.default_rng(0), 3, 500, 0.5, 0.01)
    assert gap_closed(student, goal, control) is None
    one_image_better = control.copy()
    one_image_better[:, np.flatnonzero(~control.any(axis=0))[0]] = True
    assert gap_closed(student, control, one_image_better) is None


def test_a_gap_of_other_shapes_is_refused() -> None:
    two = np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="three matrices of one shape"):
        gap_closed(two, two, np.ones((2, 4), bool))
    with pytest.raises(ValueError, match="three matrices of one shape"):
        gap_closed(two[0], two[0], two[0])


def test_the_interval_of_a_gap_is_that_of_a_bootstrap_over_images() -> None:
    rng = np.random.default_rng(1)
    student, control, goal = three_methods(rng, 1, 2000, 0.6, 0.0)
    found = gap_closed(student, control, goal)
    assert found is not None
    shares = []
    for _ in range(2000):
        drawn = rng.integers(0, 2000, 2000)
        base = control[0, drawn].mean()
        shares.append((student[0, drawn].mean() - base) / (goal[0, drawn].mean() - base))
    lower, upper = np.quantile(shares, [0.025, 0.975])
    assert found.lower == pytest.approx(lower, abs=0.02)
    assert found.upper == pytest.approx(upper, abs=0.02)


@pytest.mark.parametrize(("n_seeds", "closed"), [(1, 0.5), (3, 0.0), (3, 0.8), (3, 1.0)])
def test_the_interval_of_a_gap_covers_the_true_share(n_seeds: int, closed: float) -> None:
    rng = np.random.default_rng(0)
    # One seed says nothing of the chance of seeds.
    seed_noise = 0.02 if n_seeds > 1 else 0.0
    n_trials = 300
    n_covered = 0
    for _ in range(n_trials):
        found = gap_closed(*three_methods(rng, n_seeds, 400, closed, seed_noise))
        n_covered += found is not None and found.lower <= closed <= found.upper
    # 2.5 standard errors of the simulation below 95 %.
    assert n_covered / n_trials >= 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / n_trials)
