"""Distillation objectives: slow references with gradients, limits, and the min-max as one product."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.learning.losses.distillation import (
    OBJECTIVES,
    class_loss_mass,
    kd_loss,
    kl_divergence,
    robust_kd_loss,
    soft_cross_entropy,
)

TEMPERATURES = [1.0, 4.0]


def batch(
    seed: int, n: int = 12, n_classes: int = 5, n_vectors: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits and weight vectors, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        2 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return (
        student,
        teacher,
        2 * torch.rand(n_vectors, n_classes, generator=generator, dtype=torch.float64),
    )


def slow_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One sample at a time."""
    p = [math.exp(z / temperature) for z in teacher.tolist()]
    q = torch.exp(student / temperature)
    return -torch.stack(
        [p_k / sum(p) * torch.log(q_k / q.sum()) for p_k, q_k in zip(p, q, strict=True)]
    ).sum()


def slow_robust_loss(
    student: Tensor, teacher: Tensor, vectors: Tensor, temperature: float
) -> Tensor:
    """Eq. 8-10 as the double loop over weight vectors and samples."""
    candidates = []
    for w in vectors:
        total = torch.zeros((), dtype=student.dtype)
        for student_i, teacher_i in zip(student, teacher, strict=True):
            total = total + w[teacher_i.argmax()] * slow_cross_entropy(
                student_i, teacher_i, temperature
            )
        candidates.append(temperature**2 * total / len(student))
    return max(candidates, key=lambda candidate: candidate.item())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_cross_entropy_equals_the_slow_one(temperature: float) -> None:
    student, teacher, _ = batch(0)
    expected = torch.stack(
        [slow_cross_entropy(s, t, temperature) for s, t in zip(student, teacher, strict=True)]
    )
    torch.testing.assert_close(soft_cross_entropy(student, teacher, temperature), expected)
    torch.testing.assert_close(
        kd_loss(student, teacher, temperature), temperature**2 * expected.mean()
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equal_logits_give_the_entropy_and_no_gradient(temperature: float) -> None:
    _, teacher, _ = batch(1)
    student = (teacher + 3.0).requires_grad_()  # softmax does not see a constant
    losses = soft_cross_entropy(student, teacher, temperature)
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy()
    torch.testing.assert_close(losses.detach(), entropy)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20))
def test_cross_entropy_is_never_below_the_entropy_of_the_teacher(
    seed: int, temperature: float
) -> None:
    student, teacher, _ = batch(seed)
    entropy = soft_cross_entropy(teacher, teacher, temperature)
    assert (soft_cross_entropy(student, teacher, temperature) >= entropy - 1e-12).all()


def test_divergence_is_torchs_own_and_zero_for_equal_logits() -> None:
    teacher, student = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    expected = functional.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    torch.testing.assert_close(kl_divergence(teacher, student), expected, rtol=1e-4, atol=1e-5)
    assert (kl_divergence(teacher, teacher + 3.0) < 1e-5).all()
    assert (kl_divergence(1e4 * teacher, student) >= 0).all()


def test_temperature_squared_keeps_the_size_of_the_gradient() -> None:
    student, teacher, vectors = batch(2)
    student.requires_grad_()
    for loss in (
        kd_loss,
        lambda s, t, temperature: robust_kd_loss(s, t, vectors[:1], temperature).loss,
    ):
        # In the limit of large T the scaled gradient tends to (centered logits) / (N K): it stops depending on T.
        sizes = [
            torch.autograd.grad(loss(student, teacher, t), student)[0].norm()
            for t in (200.0, 400.0)
        ]
        torch.testing.assert_close(sizes[0], sizes[1], rtol=0.02, atol=0)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    n_vectors=st.integers(1, 5),
    t=st.sampled_from(TEMPERATURES),
)
def test_one_product_equals_the_double_loop_with_its_gradient(
    seed: int, n: int, n_vectors: int, t: float
) -> None:
    student, teacher, vectors = batch(seed, n=n, n_vectors=n_vectors)
    student.requires_grad_()
    fast, worst = robust_kd_loss(student, teacher, vectors, t)
    slow = slow_robust_loss(student, teacher, vectors, t)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(
        torch.autograd.grad(fast, student)[0], torch.autograd.grad(slow, student)[0]
    )
    torch.testing.assert_close(robust_kd_loss(student, teacher, vectors[worst][None], t).loss, fast)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_the_maximum_bounds_every_member_and_scales_with_the_weights(
    seed: int, factor: float
) -> None:
    student, teacher, vectors = batch(seed)
    loss, worst = robust_kd_loss(student, teacher, vectors, 1.0)
    members = torch.stack([robust_kd_loss(student, teacher, w[None], 1.0).loss for w in vectors])
    assert (loss >= members).all()
    assert loss == members[worst]
    scaled = robust_kd_loss(student, teacher, factor * vectors, 1.0)
    torch.testing.assert_close(scaled.loss, factor * loss)
    assert scaled.worst == worst


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_all_equal_weights_give_plain_distillation(temperature: float) -> None:
    student, teacher, vectors = batch(3)
    robust = robust_kd_loss(student, teacher, torch.ones_like(vectors), temperature).loss
    torch.testing.assert_close(robust, kd_loss(student, teacher, temperature))


def test_class_loss_mass_equals_the_loop_and_leaves_absent_classes_at_zero() -> None:
    losses, classes = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, 2, 2])
    torch.testing.assert_close(
        class_loss_mass(losses, classes, 4), torch.tensor([0.5, 0.0, 3.25, 0.0])
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradcheck_of_every_objective(name: str) -> None:
    student, teacher, vectors = batch(4, n=5)
    assert torch.autograd.gradcheck(
        lambda s: OBJECTIVES[name](s, teacher, vectors, 2.0)["loss"], student.requires_grad_()
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_returns_a_differentiable_loss_and_detached_metrics(name: str) -> None:
    student, teacher, vectors = (tensor.bfloat16() for tensor in batch(5))
    result = OBJECTIVES[name](student.requires_grad_(), teacher.requires_grad_(), vectors, 2.0)
    assert result["loss"].dtype == torch.float32
    assert all(value.shape == () for value in result.values())
    assert [key for key, value in result.items() if value.requires_grad] == ["loss"]
    result["loss"].backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_objectives_are_the_losses_they_name() -> None:
    student, teacher, vectors = batch(6)
    assert OBJECTIVES["kd"](student, teacher, vectors, 2.0)["loss"] == kd_loss(
        student, teacher, 2.0
    )
    robust = OBJECTIVES["robust_kd"](student, teacher, vectors, 2.0)
    assert robust["loss"] == robust_kd_loss(student, teacher, vectors, 2.0).loss
    assert (
        robust["estimated_weights_loss"]
        == robust_kd_loss(student, teacher, vectors[:1], 2.0).loss
        <= robust["loss"]
    )
    torch.testing.assert_close(robust["kd_loss"], kd_loss(student, teacher, 2.0))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_host_never_reads_a_tensor(name: str) -> None:
    student, teacher, vectors = (tensor.to("meta") for tensor in batch(7))
    assert OBJECTIVES[name](student, teacher, vectors, 2.0)["loss"].shape == ()


def test_autocast_does_not_round_the_weighted_sum() -> None:
    student, teacher, vectors = (tensor.float() for tensor in batch(8))
    expected = robust_kd_loss(student, teacher, vectors, 1.0).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            robust_kd_loss(student, teacher, vectors, 1.0).loss, expected, rtol=1e-6, atol=0
        )


def test_shapes_and_temperatures_that_do_not_fit_are_refused() -> None:
    student, teacher, vectors = batch(9)
    with pytest.raises(ValueError, match=r"one shape, got \(12, 4\) and \(12, 5\)"):
        kd_loss(student[:, :4], teacher, 1.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        kd_loss(student, teacher, 0.0)
    with pytest.raises(
        ValueError, match=r"weight_vectors must be \(n, 5\) with n > 0.*got \(4, 3\)"
    ):
        robust_kd_loss(student, teacher, vectors[:, :3], 1.0)
