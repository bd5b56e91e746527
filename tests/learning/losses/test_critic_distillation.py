"""The student's objective with a critic: its terms, their weights, and which gradients flow."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning.losses.attention_transfer import attention_transfer_loss
from pu_kd_pipeline.learning.losses.critic import critic_distillation
from tests.learning.generators import seeded_generator

WEIGHTS: dict[str, Any] = {
    "temperature": 4.0,
    "alpha": 0.9,
    "attention_weight": 1000.0,
    "critic_weight": 0.1,
}


class Batch(NamedTuple):
    """Arguments of `critic_distillation`, in its order."""

    student_logits: Tensor
    teacher_logits: Tensor
    student_maps: list[Tensor]
    teacher_maps: list[Tensor]
    student_scores: Tensor
    labels: Tensor


def student_batch(seed: int = 0) -> Batch:
    generator = seeded_generator(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Batch(
        student_logits=2 * draw(6, 5),
        teacher_logits=2 * draw(6, 5),
        student_maps=[draw(6, 3, 4, 4)],
        teacher_maps=[draw(6, 5, 2, 2)],
        student_scores=draw(6),
        labels=torch.tensor([0, 1, 2, 3, 4, 0]),
    )


# The slow references are differentiable, so that gradients can be compared as well.
def slow_softmax(logits: Tensor) -> Tensor:
    exponentials = torch.exp(logits)
    return exponentials / exponentials.sum()


def slow_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) of one sample, one class at a time."""
    p = slow_softmax(teacher_logits)
    q = slow_softmax(student_logits)
    total = torch.zeros((), dtype=torch.float64)
    for p_k, q_k in zip(p, q, strict=True):
        log_ratio = torch.log(p_k / q_k)
        total = total + p_k * log_ratio
    return total


def slow_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    divergences = []
    for student_logits, teacher_logits in zip(student, teacher, strict=True):
        divergence = slow_divergence(student_logits / temperature, teacher_logits / temperature)
        divergences.append(divergence)
    # T^2 keeps the size of the gradient (Hinton et al. 2015, sec. 2).
    return temperature**2 * torch.stack(divergences).mean()


def slow_label_loss(student: Tensor, labels: Tensor) -> Tensor:
    losses = []
    for logits, label in zip(student, labels, strict=True):
        losses.append(-torch.log(slow_softmax(logits)[label]))
    return torch.stack(losses).mean()


def slow_critic_loss(student_scores: Tensor) -> Tensor:
    losses = [torch.log(1 + torch.exp(-score)) for score in student_scores]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("has_critic", [True, False])
def test_the_objective_is_the_weighted_sum_of_its_terms_with_its_gradient(
    has_labels: bool, has_critic: bool
) -> None:
    batch = student_batch()
    inputs = [batch.student_logits, batch.student_maps[0], batch.student_scores]
    for tensor in inputs:
        tensor.requires_grad_()

    terms = {
        "kl_loss": slow_kl(batch.student_logits, batch.teacher_logits, 4.0),
        "attention_loss": attention_transfer_loss(batch.student_maps, batch.teacher_maps),
    }
    weights = {"kl_loss": 1.0, "attention_loss": 1000.0}
    arguments = batch
    if has_critic:
        terms["student_critic_loss"] = slow_critic_loss(batch.student_scores)
        weights["student_critic_loss"] = 0.1
    else:
        arguments = arguments._replace(student_scores=None)
    if has_labels:
        terms["label_loss"] = slow_label_loss(batch.student_logits, batch.labels)
        weights["label_loss"] = 0.1
        weights["kl_loss"] = 0.9  # alpha counts only next to labels
    else:
        arguments = arguments._replace(labels=None)
    result = critic_distillation(*arguments, **WEIGHTS)
    weighted_terms = [weights[name] * terms[name] for name in terms]
    expected = torch.stack(weighted_terms).sum()

    assert set(result) == {"loss", *terms}
    for name, term in terms.items():
        assert_close(result[name], term.detach())
    assert_close(result["loss"], expected)

    # Without a critic, the scores have no gradient.
    options = {"allow_unused": True, "materialize_grads": True}
    found_gradients = torch.autograd.grad(result["loss"], inputs, **options)
    expected_gradients = torch.autograd.grad(expected, inputs, **options)

    assert_close(found_gradients, expected_gradients)


def test_gradcheck_of_the_objective() -> None:
    batch = student_batch(1)

    def loss(student_logits: Tensor, student_map: Tensor, student_scores: Tensor) -> Tensor:
        arguments = batch._replace(
            student_logits=student_logits,
            student_maps=[student_map],
            student_scores=student_scores,
        )
        result = critic_distillation(*arguments, **WEIGHTS)
        return result["loss"]

    inputs = (batch.student_logits, batch.student_maps[0], batch.student_scores)
    for tensor in inputs:
        tensor.requires_grad_()

    assert torch.autograd.gradcheck(loss, inputs)


def test_for_a_student_equal_to_its_teacher_only_the_critic_term_remains() -> None:
    batch = student_batch()
    student_maps = batch.student_maps
    teacher_logits = batch.student_logits + 3.0  # softmax does not see a constant

    result = critic_distillation(
        batch.student_logits,
        teacher_logits,
        student_maps,
        student_maps,
        batch.student_scores,
        **WEIGHTS,
    )

    assert result["kl_loss"].item() == pytest.approx(0.0, abs=1e-12)
    assert result["attention_loss"] == 0

    critic_term = 0.1 * result["student_critic_loss"].item()
    assert result["loss"].item() == pytest.approx(critic_term)


def test_only_the_loss_is_differentiable_and_the_teacher_gets_no_gradient() -> None:
    batch = student_batch()
    student = batch.student_logits.bfloat16().requires_grad_()
    teacher = batch.teacher_logits.bfloat16().requires_grad_()
    student_scores = batch.student_scores.bfloat16().requires_grad_()
    # Maps of two dtypes, as where only the student runs under autocast.
    student_map = batch.student_maps[0].bfloat16()
    teacher_map = batch.teacher_maps[0].float().requires_grad_()

    result = critic_distillation(
        student,
        teacher,
        [student_map],
        [teacher_map],
        student_scores,
        batch.labels,
        **WEIGHTS,
    )

    # The other entries are for the history.
    for name, value in result.items():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.requires_grad == (name == "loss")

    result["loss"].backward()
    assert student.grad is not None
    assert student_scores.grad is not None
    assert teacher.grad is None
    assert teacher_map.grad is None


def test_the_host_never_reads_a_tensor_of_the_objective() -> None:
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    batch = student_batch()
    result = critic_distillation(
        batch.student_logits.to("meta"),
        batch.teacher_logits.to("meta"),
        [batch.student_maps[0].to("meta")],
        [batch.teacher_maps[0].to("meta")],
        batch.student_scores.to("meta"),
        batch.labels.to("meta"),
        **WEIGHTS,
    )

    assert result["loss"].shape == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": 1.2}, r"alpha must be in \[0, 1\].*got alpha=1.2"),
        ({"attention_weight": -1.0}, "attention_weight=-1.0"),
        ({"critic_weight": math.nan}, "critic_weight=nan"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_impossible_weights_are_refused(wrong: dict[str, float], message: str) -> None:
    weights = {**WEIGHTS, **wrong}
    with pytest.raises(ValueError, match=message):
        critic_distillation(*student_batch(), **weights)
