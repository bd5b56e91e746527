"""Losses of the PU critic: risks by value and gradient, and the schedules of prior and weight."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from pu_kd_pipeline.learning.losses.critic import (
    CriticMode,
    class_prior_at,
    pu_critic_risk,
    ramp,
    student_critic_loss,
)

PRIOR = 0.4
MODES: tuple[CriticMode, ...] = ("clamp", "ascent", "gan")
# Student features score high as well: R_- > 0.
FREE = (torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.5, 1.5, -1.0, 2.0]))
# Teacher high and student low: the student looks too negative, R_- < 0.
CLAMPED = (torch.tensor([3.0, 2.5, 4.0]), torch.tensor([-3.0, -2.0, -4.0, -2.5]))


def with_grad(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    teacher, student = batch
    return teacher.double().requires_grad_(), student.double().requires_grad_()


# Written out, because the module under test uses functional.softplus.
def slow_softplus_mean(scores: Tensor) -> Tensor:
    losses = [torch.log(1 + torch.exp(score)) for score in scores]
    return torch.stack(losses).mean()


def slow_terms(teacher: Tensor, student: Tensor, class_prior: float) -> tuple[Tensor, Tensor]:
    """R_p+ and R_- under the logistic loss, one score at a time."""
    positive = slow_softplus_mean(-teacher)
    positive_as_negative = slow_softplus_mean(teacher)
    unlabeled_as_negative = slow_softplus_mean(student)
    positive_risk = class_prior * positive
    negative_risk = unlabeled_as_negative - class_prior * positive_as_negative
    return positive_risk, negative_risk


def gradients(objective: Tensor, *inputs: Tensor) -> Tensor:
    parts = torch.autograd.grad(objective, inputs, allow_unused=True, materialize_grads=True)
    return torch.cat(parts)


def as_vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


scores = st.lists(st.floats(-30, 30), min_size=1, max_size=6).map(as_vector)


# --- risk


@pytest.mark.parametrize("mode", ["clamp", "ascent"])
def test_above_zero_both_pu_risks_are_the_whole_risk_by_value_and_gradient(
    mode: CriticMode,
) -> None:
    teacher, student = with_grad(FREE)
    risk = pu_critic_risk(teacher, student, PRIOR, mode)
    positive_risk, negative_risk = slow_terms(teacher, student, PRIOR)
    whole = positive_risk + negative_risk

    assert not risk.is_clamped
    assert_close(risk.value, whole.detach())
    assert_close(risk.objective, whole)

    found = gradients(risk.objective, teacher, student)
    expected = gradients(whole, teacher, student)

    assert_close(found, expected)


def test_when_clamped_only_the_first_term_has_a_gradient() -> None:
    teacher, student = with_grad(CLAMPED)
    risk = pu_critic_risk(teacher, student, PRIOR, "clamp")
    positive_risk, negative_risk = slow_terms(teacher, student, PRIOR)

    assert risk.is_clamped
    assert negative_risk < 0
    assert_close(risk.value, positive_risk.detach())
    assert_close(risk.objective, positive_risk)

    found = gradients(risk.objective, teacher, student)
    expected = gradients(positive_risk, teacher, student)

    assert_close(found, expected)

    student_gradient = found[len(teacher) :]
    assert (student_gradient == 0).all()


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_ascent_follows_minus_gamma_times_the_negative_part_alone(gamma: float) -> None:
    teacher, student = with_grad(CLAMPED)
    risk = pu_critic_risk(teacher, student, PRIOR, "ascent", gamma=gamma)
    positive_risk, negative_risk = slow_terms(teacher, student, PRIOR)

    assert risk.is_clamped
    assert_close(risk.value, positive_risk.detach())

    found = gradients(risk.objective, teacher, student)
    expected = -gamma * gradients(negative_risk, teacher, student)

    assert_close(found, expected)


def cross_entropy_of_teacher_against_student(teacher: Tensor, student: Tensor) -> Tensor:
    teacher_ones = torch.ones_like(teacher)
    student_ones = torch.ones_like(student)
    # Each network counts as one, however many features it has in the batch.
    weight = torch.cat([teacher_ones / len(teacher), student_ones / len(student)])
    is_teacher = torch.cat([teacher_ones, 0 * student_ones])
    return functional.binary_cross_entropy_with_logits(
        torch.cat([teacher, student]), target=is_teacher, weight=weight, reduction="sum"
    )


@pytest.mark.parametrize("batch", [FREE, CLAMPED])
def test_gan_is_the_cross_entropy_of_teacher_against_student_whatever_the_prior(
    batch: tuple[Tensor, Tensor],
) -> None:
    teacher, student = with_grad(batch)
    # A nan prior would show in the risk if `gan` read it.
    risk = pu_critic_risk(teacher, student, math.nan, "gan")
    expected = cross_entropy_of_teacher_against_student(teacher, student)

    assert not risk.is_clamped
    assert_close(risk.value, expected.detach())

    found_gradients = gradients(risk.objective, teacher, student)
    expected_gradients = gradients(expected, teacher, student)

    assert_close(found_gradients, expected_gradients)


def risk_of_equal_scores(score: float, class_prior: float) -> float:
    # Of three and two samples, since the numbers of samples must not matter.
    teacher = torch.full((3,), score, dtype=torch.float64)
    student = torch.full((2,), score, dtype=torch.float64)
    risk = pu_critic_risk(teacher, student, class_prior, "clamp")
    return risk.value.item()


@settings(deadline=None, max_examples=40)
@given(score=st.floats(-20, 20), class_prior=st.floats(0.01, 0.99))
def test_equal_scores_give_a_cross_entropy_that_is_least_at_the_log_odds_of_the_prior(
    score: float, class_prior: float
) -> None:
    negative_prior = 1 - class_prior
    loss_as_positive = math.log1p(math.exp(-score))
    loss_as_negative = math.log1p(math.exp(score))
    expected = class_prior * loss_as_positive + negative_prior * loss_as_negative
    risk = risk_of_equal_scores(score, class_prior)

    assert risk == pytest.approx(expected, rel=1e-9)

    # A cross-entropy is least, and then the entropy, where the probabilities agree.
    log_odds = math.log(class_prior / negative_prior)
    entropy = -class_prior * math.log(class_prior) - negative_prior * math.log(negative_prior)
    least = risk_of_equal_scores(log_odds, class_prior)

    assert least == pytest.approx(entropy, rel=1e-9)
    assert risk >= entropy - 1e-12


@settings(deadline=None, max_examples=60)
@given(teacher=scores, student=scores, class_prior=st.floats(0.01, 0.99))
def test_risks_are_never_negative_and_the_modes_agree_on_value_and_branch(
    teacher: Tensor, student: Tensor, class_prior: float
) -> None:
    clamp = pu_critic_risk(teacher, student, class_prior, "clamp")
    ascent = pu_critic_risk(teacher, student, class_prior, "ascent")

    assert clamp.value == ascent.value
    assert clamp.value >= 0
    assert clamp.is_clamped == ascent.is_clamped

    positive_risk, negative_risk = slow_terms(teacher, student, class_prior)
    expected = positive_risk + negative_risk.clamp(min=0)

    assert_close(clamp.value, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [FREE, CLAMPED])
def test_gradcheck_of_every_mode_in_both_branches(
    mode: CriticMode, batch: tuple[Tensor, Tensor]
) -> None:
    inputs = with_grad(batch)

    def objective(teacher: Tensor, student: Tensor) -> Tensor:
        risk = pu_critic_risk(teacher, student, PRIOR, mode, gamma=0.7)
        return risk.objective

    assert torch.autograd.gradcheck(objective, inputs)


@pytest.mark.parametrize("mode", MODES)
def test_the_host_never_reads_a_tensor_of_the_risk(mode: CriticMode) -> None:
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    teacher = torch.empty(4, device="meta")
    student = torch.empty(9, device="meta")
    risk = pu_critic_risk(teacher, student, PRIOR, mode)

    for term in risk:
        assert term.shape == ()


@pytest.mark.parametrize("mode", MODES)
def test_bf16_scores_are_averaged_in_float32(mode: CriticMode) -> None:
    float_teacher, float_student = CLAMPED
    teacher = float_teacher.bfloat16()
    student = float_student.bfloat16()

    risk = pu_critic_risk(teacher, student, PRIOR, mode)
    student_loss = student_critic_loss(student)
    # Of the rounded scores, so that only the averages could differ.
    expected = pu_critic_risk(teacher.float(), student.float(), PRIOR, mode)

    assert risk.objective.dtype == torch.float32
    assert risk.value.dtype == torch.float32
    assert student_loss.dtype == torch.float32
    assert_close(risk.value, expected.value)


@pytest.mark.parametrize("class_prior", [0.0, 1.0, math.nan])
def test_risks_of_impossible_priors_are_refused(class_prior: float) -> None:
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1"):
        pu_critic_risk(*FREE, class_prior, "clamp")


def test_risks_of_unknown_modes_missing_features_and_impossible_gammas_are_refused() -> None:
    teacher, student = FREE
    no_student = torch.empty(0)

    with pytest.raises(ValueError, match="mode must be 'clamp', 'ascent' or 'gan', got 'wgan'"):
        pu_critic_risk(teacher, student, PRIOR, "wgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 3 of the teacher and 0 of the student"):
        pu_critic_risk(teacher, no_student, PRIOR, "gan")
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got 2"):
        pu_critic_risk(teacher, student, PRIOR, "ascent", gamma=2.0)


# --- schedules


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.3), (0.5, 0.45), (1.0, 0.6)])
def test_the_prior_goes_from_start_to_end_on_a_line(progress: float, expected: float) -> None:
    class_prior = class_prior_at(progress)
    assert class_prior == pytest.approx(expected)


def test_the_prior_may_fall() -> None:
    class_prior = class_prior_at(0.25, start=0.8, end=0.4)
    assert class_prior == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("n", "n_ramp", "expected"),
    [(0, 4, 0.0), (1, 4, 0.25), (3, 4, 0.75), (4, 4, 1.0), (100, 4, 1.0), (0, 0, 1.0)],
)
def test_the_ramp_rises_on_a_line_and_stays_at_one(n: int, n_ramp: int, expected: float) -> None:
    assert ramp(n, n_ramp) == expected


def test_schedules_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 1.5"):
        class_prior_at(1.5)
    with pytest.raises(ValueError, match="strictly between 0 and 1, got 0.3 and 1.0"):
        class_prior_at(0.5, end=1.0)
    with pytest.raises(ValueError, match="at least 0, got -1 and 4"):
        ramp(-1, 4)
