"""PU risks: both branches by value and by gradient, the sign trap, and the missing negatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pu_kd_pipeline.learning.losses.risk import PURisk, pu_risk, sigmoid_loss, zero_one_risk

PRIOR = 0.4
# All positives score low among the unlabeled: R_- > 0. The other way round the unlabeled look too negative: R_- < 0.
DESCENT = (torch.tensor([-2.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, -0.5, 3.0]))
ASCENT = (torch.tensor([3.0, 2.5, 4.0]), torch.tensor([-3.0, -2.0, -4.0, -2.5]))


def slow_terms(positive: Tensor, unlabeled: Tensor, class_prior: float) -> tuple[Tensor, Tensor]:
    """R_p+ and R_- of Kiryo et al. 2017, one sample at a time."""
    positive_as_positive = torch.stack([1 / (1 + torch.exp(f)) for f in positive]).mean()
    positive_as_negative = torch.stack([1 / (1 + torch.exp(-f)) for f in positive]).mean()
    unlabeled_as_negative = torch.stack([1 / (1 + torch.exp(-f)) for f in unlabeled]).mean()
    return (
        class_prior * positive_as_positive,
        unlabeled_as_negative - class_prior * positive_as_negative,
    )


def gradients(objective: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat(torch.autograd.grad(objective, inputs))


def with_grad(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].double().requires_grad_(), batch[1].double().requires_grad_()


def logits(max_size: int = 6) -> st.SearchStrategy[Tensor]:
    return st.lists(st.floats(-30, 30), min_size=1, max_size=max_size).map(
        lambda values: torch.tensor(values, dtype=torch.float64)
    )


def test_sigmoid_loss_of_both_labels_sums_to_one_and_falls_with_the_right_score() -> None:
    scores = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(sigmoid_loss(scores, 1) + sigmoid_loss(scores, -1), torch.ones(11))
    assert (sigmoid_loss(scores, 1).diff() < 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_descent_branch_has_value_and_gradient_of_the_whole_risk(beta: float) -> None:
    positive, unlabeled = with_grad(DESCENT)
    risk = pu_risk(positive, unlabeled, PRIOR, estimator="nnpu", beta=beta)
    positive_risk, negative_risk = slow_terms(positive, unlabeled, PRIOR)
    assert not risk.is_ascent
    torch.testing.assert_close(risk.value, (positive_risk + negative_risk).detach())
    torch.testing.assert_close(risk.positive_risk, positive_risk.detach())
    torch.testing.assert_close(risk.negative_risk, negative_risk.detach())
    expected = gradients(positive_risk + negative_risk, positive, unlabeled)
    torch.testing.assert_close(gradients(risk.objective, positive, unlabeled), expected)


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.05, 0.3)])
def test_ascent_branch_follows_minus_gamma_times_the_negative_part_alone(
    beta: float, gamma: float
) -> None:
    positive, unlabeled = with_grad(ASCENT)
    risk = pu_risk(positive, unlabeled, PRIOR, estimator="nnpu", beta=beta, gamma=gamma)
    positive_risk, negative_risk = slow_terms(positive, unlabeled, PRIOR)
    assert risk.is_ascent
    assert negative_risk < -beta
    torch.testing.assert_close(risk.value, (positive_risk - beta).detach())
    expected = -gamma * gradients(negative_risk, positive, unlabeled)
    torch.testing.assert_close(gradients(risk.objective, positive, unlabeled), expected)


def test_beta_tolerates_a_slightly_negative_risk() -> None:
    negative_risk = pu_risk(*ASCENT, PRIOR, estimator="nnpu").negative_risk.item()
    assert not pu_risk(*ASCENT, PRIOR, estimator="nnpu", beta=-negative_risk + 1e-3).is_ascent
    assert pu_risk(*ASCENT, PRIOR, estimator="nnpu", beta=-negative_risk - 1e-3).is_ascent


@pytest.mark.parametrize("batch", [DESCENT, ASCENT])
def test_gradcheck_in_both_branches(batch: tuple[Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(
        lambda p, u: pu_risk(p, u, PRIOR, estimator="nnpu", gamma=0.7).objective, with_grad(batch)
    )


def test_upu_never_ascends_and_goes_negative_where_nnpu_does_not() -> None:
    positive, unlabeled = with_grad(ASCENT)
    upu = pu_risk(positive, unlabeled, PRIOR, estimator="upu")
    assert not upu.is_ascent
    assert upu.value < 0 <= pu_risk(positive, unlabeled, PRIOR, estimator="nnpu").value
    positive_risk, negative_risk = slow_terms(positive, unlabeled, PRIOR)
    expected = gradients(positive_risk + negative_risk, positive, unlabeled)
    torch.testing.assert_close(gradients(upu.objective, positive, unlabeled), expected)


@pytest.mark.parametrize(("estimator", "overfits"), [("upu", True), ("nnpu", False)])
def test_free_scores_drive_the_upu_risk_below_zero_but_not_the_nnpu_risk(
    estimator: str, overfits: bool
) -> None:
    torch.manual_seed(0)
    positive, unlabeled = torch.zeros(20, requires_grad=True), torch.zeros(60, requires_grad=True)
    optimizer = torch.optim.SGD([positive, unlabeled], lr=5.0)
    n_ascents = 0
    for _ in range(300):
        risk = pu_risk(positive, unlabeled, PRIOR, estimator=estimator)  # type: ignore[arg-type]
        optimizer.zero_grad()
        risk.objective.backward()
        optimizer.step()
        n_ascents += int(risk.is_ascent)
    assert (risk.negative_risk < -0.2) == overfits
    assert (n_ascents == 0) == overfits


@settings(deadline=None, max_examples=60)
@given(
    positive=logits(), unlabeled=logits(), class_prior=st.floats(0.01, 0.99), beta=st.floats(0, 0.5)
)
def test_nnpu_value_is_never_below_minus_beta_and_terms_add_up(
    positive: Tensor, unlabeled: Tensor, class_prior: float, beta: float
) -> None:
    risk = pu_risk(positive, unlabeled, class_prior, estimator="nnpu", beta=beta)
    assert risk.value >= -beta - 1e-12
    assert bool(risk.is_ascent) == bool(risk.negative_risk < -beta)
    upu = pu_risk(positive, unlabeled, class_prior, estimator="upu")
    torch.testing.assert_close(upu.value, risk.positive_risk + risk.negative_risk)


@settings(deadline=None, max_examples=30)
@given(positive=logits(), unlabeled=logits(), seed=st.integers(0, 100))
def test_permuting_the_batch_keeps_the_risk(positive: Tensor, unlabeled: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shuffled_p, shuffled_u = (
        batch[torch.randperm(len(batch), generator=generator)] for batch in (positive, unlabeled)
    )
    expected = pu_risk(positive, unlabeled, PRIOR, estimator="upu").value
    torch.testing.assert_close(
        pu_risk(shuffled_p, shuffled_u, PRIOR, estimator="upu").value, expected
    )


def test_bf16_logits_are_averaged_in_float32() -> None:
    positive, unlabeled = (batch.bfloat16() for batch in DESCENT)
    risk = pu_risk(positive, unlabeled, PRIOR, estimator="nnpu")
    assert risk.objective.dtype == risk.value.dtype == torch.float32
    expected = pu_risk(positive.float(), unlabeled.float(), PRIOR, estimator="nnpu")
    torch.testing.assert_close(risk.value, expected.value, rtol=0, atol=0)


@pytest.mark.parametrize("estimator", ["nnpu", "upu"])
def test_the_host_never_reads_a_tensor(estimator: str) -> None:
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    risk = pu_risk(
        torch.empty(4, device="meta"), torch.empty(9, device="meta"), PRIOR, estimator=estimator
    )  # type: ignore[arg-type]
    assert isinstance(risk, PURisk)
    assert all(term.shape == () for term in risk)


def test_zero_one_risk_equals_the_share_of_wrong_decisions_of_a_known_population() -> None:
    # 300 positives of 1,000; 60 of them missed, 70 negatives taken for positives.
    assert zero_one_risk(60 / 300, (240 + 70) / 1000, 0.3) == pytest.approx((60 + 70) / 1000)


@pytest.mark.parametrize("class_prior", [0.0, 1.0, 1.2, float("nan")])
def test_impossible_class_prior_is_refused(class_prior: float) -> None:
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1"):
        pu_risk(*DESCENT, class_prior, estimator="nnpu")
    with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1"):
        zero_one_risk(0.1, 0.1, class_prior)


def test_empty_batch_unknown_estimator_and_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 positive and 4 unlabeled"):
        pu_risk(torch.empty(0), DESCENT[1], PRIOR, estimator="nnpu")
    with pytest.raises(ValueError, match="estimator must be 'nnpu' or 'upu', got 'pn'"):
        pu_risk(*DESCENT, PRIOR, estimator="pn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gamma in \[0, 1\], got beta=-0.1, gamma=1"):
        pu_risk(*DESCENT, PRIOR, estimator="nnpu", beta=-0.1)
