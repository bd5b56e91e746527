"""PU risks: both branches by value and by gradient, the sign trap, and the missing negatives."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning.losses.risk import PURisk, pu_risk, sigmoid_loss, zero_one_risk
from tests.learning.generators import seeded_generator

PRIOR = 0.4
# All positives score low among the unlabeled: R_- > 0.
DESCENT = (torch.tensor([-2.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, -0.5, 3.0]))
# The other way round the unlabeled look too negative: R_- < 0.
ASCENT = (torch.tensor([3.0, 2.5, 4.0]), torch.tensor([-3.0, -2.0, -4.0, -2.5]))

nnpu_risk = functools.partial(pu_risk, estimator="nnpu")
upu_risk = functools.partial(pu_risk, estimator="upu")


def slow_sigmoid_mean(logits: Tensor) -> Tensor:
    values = [1 / (1 + torch.exp(-f)) for f in logits]
    return torch.stack(values).mean()


def slow_terms(positive: Tensor, unlabeled: Tensor, class_prior: float) -> tuple[Tensor, Tensor]:
    """R_p+ and R_- of Kiryo et al. 2017, one sample at a time."""
    positive_as_positive = slow_sigmoid_mean(-positive)
    positive_as_negative = slow_sigmoid_mean(positive)
    unlabeled_as_negative = slow_sigmoid_mean(unlabeled)
    positive_risk = class_prior * positive_as_positive
    negative_risk = unlabeled_as_negative - class_prior * positive_as_negative
    return positive_risk, negative_risk


def gradients(objective: Tensor, *inputs: Tensor) -> Tensor:
    parts = torch.autograd.grad(objective, inputs)
    return torch.cat(parts)


def with_grad(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    positive, unlabeled = batch
    return positive.double().requires_grad_(), unlabeled.double().requires_grad_()


def as_vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


logits = st.lists(st.floats(-30, 30), min_size=1, max_size=6).map(as_vector)


def test_sigmoid_loss_of_both_labels_sums_to_one_and_falls_with_the_right_score() -> None:
    scores = torch.linspace(-5, 5, 11)
    as_positive = sigmoid_loss(scores, 1)
    as_negative = sigmoid_loss(scores, -1)

    assert_close(as_positive + as_negative, torch.ones(11))
    assert (as_positive.diff() < 0).all()


# --- the two branches


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_descent_branch_has_value_and_gradient_of_the_whole_risk(beta: float) -> None:
    positive, unlabeled = with_grad(DESCENT)
    risk = nnpu_risk(positive, unlabeled, PRIOR, beta=beta)
    positive_risk, negative_risk = slow_terms(positive, unlabeled, PRIOR)
    whole = positive_risk + negative_risk

    assert not risk.is_ascent
    assert_close(risk.value, whole.detach())
    assert_close(risk.positive_risk, positive_risk.detach())
    assert_close(risk.negative_risk, negative_risk.detach())

    found = gradients(risk.objective, positive, unlabeled)
    expected = gradients(whole, positive, unlabeled)

    assert_close(found, expected)


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.05, 0.3)])
def test_ascent_branch_follows_minus_gamma_times_the_negative_part_alone(
    beta: float, gamma: float
) -> None:
    positive, unlabeled = with_grad(ASCENT)
    risk = nnpu_risk(positive, unlabeled, PRIOR, beta=beta, gamma=gamma)
    positive_risk, negative_risk = slow_terms(positive, unlabeled, PRIOR)
    expected_value = positive_risk - beta

    assert risk.is_ascent
    assert negative_risk < -beta
    assert_close(risk.value, expected_value.detach())

    # Algorithm 1 of Kiryo et al. 2017 climbs out of the negative part, and ignores the rest.
    found = gradients(risk.objective, positive, unlabeled)
    expected = -gamma * gradients(negative_risk, positive, unlabeled)

    assert_close(found, expected)


def test_beta_tolerates_a_slightly_negative_risk() -> None:
    # How far below zero the negative risk of this batch is.
    deficit = -nnpu_risk(*ASCENT, PRIOR).negative_risk.item()
    tolerant = nnpu_risk(*ASCENT, PRIOR, beta=deficit + 1e-3)
    strict = nnpu_risk(*ASCENT, PRIOR, beta=deficit - 1e-3)

    assert not tolerant.is_ascent
    assert strict.is_ascent


@pytest.mark.parametrize("batch", [DESCENT, ASCENT])
def test_gradcheck_in_both_branches(batch: tuple[Tensor, Tensor]) -> None:
    inputs = with_grad(batch)

    def objective(positive: Tensor, unlabeled: Tensor) -> Tensor:
        risk = nnpu_risk(positive, unlabeled, PRIOR, gamma=0.7)
        return risk.objective

    assert torch.autograd.gradcheck(objective, inputs)


def test_upu_never_ascends_and_goes_negative_where_nnpu_does_not() -> None:
    positive, unlabeled = with_grad(ASCENT)
    upu = upu_risk(positive, unlabeled, PRIOR)
    nnpu = nnpu_risk(positive, unlabeled, PRIOR)

    assert not upu.is_ascent
    assert upu.value < 0 <= nnpu.value

    positive_risk, negative_risk = slow_terms(positive, unlabeled, PRIOR)
    whole = positive_risk + negative_risk
    found = gradients(upu.objective, positive, unlabeled)
    expected = gradients(whole, positive, unlabeled)

    assert_close(found, expected)


@pytest.mark.parametrize(("estimator", "overfits"), [("upu", True), ("nnpu", False)])
def test_free_scores_drive_the_upu_risk_below_zero_but_not_the_nnpu_risk(
    estimator: str, overfits: bool
) -> None:
    # A score of its own for every sample is the most flexible model of all.
    positive = torch.zeros(20, requires_grad=True)
    unlabeled = torch.zeros(60, requires_grad=True)
    optimizer = torch.optim.SGD([positive, unlabeled], lr=5.0)
    n_ascents = 0
    for _ in range(300):
        risk = pu_risk(positive, unlabeled, PRIOR, estimator=estimator)  # type: ignore[arg-type]
        optimizer.zero_grad()
        risk.objective.backward()
        optimizer.step()
        n_ascents += int(risk.is_ascent)

    is_far_below_zero = risk.negative_risk < -0.2
    never_ascends = n_ascents == 0

    assert is_far_below_zero == overfits
    assert never_ascends == overfits


# --- properties


class_priors = st.floats(0.01, 0.99)


@settings(deadline=None, max_examples=60)
@given(positive=logits, unlabeled=logits, class_prior=class_priors, beta=st.floats(0, 0.5))
def test_nnpu_value_is_never_below_minus_beta_and_terms_add_up(
    positive: Tensor, unlabeled: Tensor, class_prior: float, beta: float
) -> None:
    risk = nnpu_risk(positive, unlabeled, class_prior, beta=beta)
    is_below_beta = risk.negative_risk < -beta

    assert risk.value >= -beta - 1e-12
    assert torch.equal(risk.is_ascent, is_below_beta)

    upu = upu_risk(positive, unlabeled, class_prior)
    sum_of_terms = risk.positive_risk + risk.negative_risk

    assert_close(upu.value, sum_of_terms)


@settings(deadline=None, max_examples=30)
@given(positive=logits, unlabeled=logits, seed=st.integers(0, 100))
def test_permuting_the_batch_keeps_the_risk(positive: Tensor, unlabeled: Tensor, seed: int) -> None:
    generator = seeded_generator(seed)
    positive_order = torch.randperm(len(positive), generator=generator)
    unlabeled_order = torch.randperm(len(unlabeled), generator=generator)
    permuted_positive = positive[positive_order]
    permuted_unlabeled = unlabeled[unlabeled_order]
    permuted = upu_risk(permuted_positive, permuted_unlabeled, PRIOR)
    expected = upu_risk(positive, unlabeled, PRIOR)

    assert_close(permuted.value, expected.value)


def test_bf16_logits_are_averaged_in_float32() -> None:
    float_positive, float_unlabeled = DESCENT
    positive = float_positive.bfloat16()
    unlabeled = float_unlabeled.bfloat16()

    risk = nnpu_risk(positive, unlabeled, PRIOR)
    # Of the rounded logits, so that only the averages could differ.
    expected = nnpu_risk(positive.float(), unlabeled.float(), PRIOR)

    assert risk.objective.dtype == torch.float32
    assert risk.value.dtype == torch.float32
    assert_close(risk.value, expected.value, rtol=0, atol=0)


@pytest.mark.parametrize("estimator", ["nnpu", "upu"])
def test_the_host_never_reads_a_tensor(estimator: str) -> None:
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    positive = torch.empty(4, device="meta")
    unlabeled = torch.empty(9, device="meta")
    risk = pu_risk(positive, unlabeled, PRIOR, estimator=estimator)  # type: ignore[arg-type]

    assert isinstance(risk, PURisk)
    for term in risk:
        assert term.shape == ()


def test_zero_one_risk_equals_the_error_rate_of_a_known_population() -> None:
    # 300 positives of 1,000; 60 of them missed, 70 negatives taken for positives.
    false_negative_rate = 60 / 300
    unlabeled_positive_share = (240 + 70) / 1000
    error_rate = (60 + 70) / 1000

    risk = zero_one_risk(false_negative_rate, unlabeled_positive_share, class_prior=0.3)

    assert risk == pytest.approx(error_rate)


# --- errors


@pytest.mark.parametrize("class_prior", [0.0, 1.0, 1.2, float("nan")])
def test_impossible_class_prior_is_refused(class_prior: float) -> None:
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1"):
        nnpu_risk(*DESCENT, class_prior)
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1"):
        zero_one_risk(0.1, 0.1, class_prior)


def test_an_empty_batch_is_refused() -> None:
    _, unlabeled = DESCENT
    no_positive = torch.empty(0)

    with pytest.raises(ValueError, match="got 0 positive and 4 unlabeled"):
        nnpu_risk(no_positive, unlabeled, PRIOR)


def test_unknown_estimators_and_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="estimator must be 'nnpu' or 'upu', got 'pn'"):
        pu_risk(*DESCENT, PRIOR, estimator="pn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gamma in \[0, 1\], got beta=-0.1, gamma=1"):
        nnpu_risk(*DESCENT, PRIOR, beta=-0.1)
