"""Losses of the latent objective: slow references with gradients, invariances and limits."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.learning.losses.latent import (
    centered_logits_loss,
    latent_loss,
    penultimate_loss,
)
from tests.learning.generators import seeded_generator

WEIGHTS = {"logits_weight": 2.0, "penultimate_weight": 3.0, "kl_weight": 0.5, "temperature": 4.0}


def draw_pair(seed: int, n: int = 7, width: int = 5) -> tuple[Tensor, Tensor]:
    """Logits or features of the student and of the teacher, (n, width) float64."""
    generator = seeded_generator(seed)
    student, teacher = 2 * torch.randn(2, n, width, generator=generator, dtype=torch.float64)
    return student, teacher


# --- the two terms


def slow_squared_distance(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=a.dtype)
    for a_k, b_k in zip(a, b, strict=True):
        total = total + (a_k - b_k) ** 2
    return total


def slow_mean(vector: Tensor) -> Tensor:
    return sum(vector) / len(vector)


def slow_centered(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over samples and classes of the squared difference of centered logits."""
    total = torch.zeros((), dtype=student.dtype)
    for z_s, z_t in zip(student, teacher, strict=True):
        centered_student = z_s - slow_mean(z_s)
        centered_teacher = z_t - slow_mean(z_t)
        total = total + slow_squared_distance(centered_student, centered_teacher)
    return total / student.numel()


def slow_length(vector: Tensor) -> Tensor:
    return torch.sqrt(sum(entry**2 for entry in vector))


def slow_penultimate(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the samples of the squared distance of unit vectors."""
    total = torch.zeros((), dtype=student.dtype)
    for u_s, u_t in zip(student, teacher, strict=True):
        student_direction = u_s / slow_length(u_s)
        teacher_direction = u_t / slow_length(u_t)
        total = total + slow_squared_distance(student_direction, teacher_direction)
    return total / len(student)


@pytest.mark.parametrize(
    ("fast", "slow"),
    [(centered_logits_loss, slow_centered), (penultimate_loss, slow_penultimate)],
    ids=["centered", "penultimate"],
)
@pytest.mark.parametrize(("n", "width"), [(1, 2), (7, 5)])
def test_losses_equal_the_loops_with_their_gradients(fast, slow, n, width):
    student, teacher = draw_pair(0, n, width)
    student.requires_grad_()
    found = fast(student, teacher)
    expected = slow(student, teacher)
    found_gradient = torch.autograd.grad(found, student)
    expected_gradient = torch.autograd.grad(expected, student)

    assert_close(found, expected)
    assert_close(found_gradient, expected_gradient)


shifts = st.floats(-50, 50)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), student_shift=shifts, teacher_shift=shifts)
def test_a_constant_in_the_logits_changes_nothing(seed, student_shift, teacher_shift):
    student, teacher = draw_pair(seed)
    expected = slow_centered(student, teacher)
    loss = centered_logits_loss(student + student_shift, teacher + teacher_shift)

    assert_close(loss, expected)

    loss_of_equals = centered_logits_loss(teacher + student_shift, teacher)
    assert loss_of_equals < 1e-20


scales = st.floats(1e-3, 1e3)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), student_scale=scales, teacher_scale=scales)
def test_the_length_of_the_features_changes_nothing(seed, student_scale, teacher_scale):
    student, teacher = draw_pair(seed)
    expected = slow_penultimate(student, teacher)
    loss = penultimate_loss(student_scale * student, teacher_scale * teacher)

    assert_close(loss, expected)
    assert 0 <= loss <= 4  # two unit vectors are at most 2 apart

    loss_of_parallels = penultimate_loss(student_scale * teacher, teacher)
    assert loss_of_parallels < 1e-20

    loss_of_opposites = penultimate_loss(-student_scale * teacher, teacher)
    assert loss_of_opposites.item() == pytest.approx(4.0)


def test_the_penultimate_loss_is_twice_the_missing_cosine():
    student, teacher = draw_pair(1)
    cosine = torch.nn.functional.cosine_similarity(student, teacher)
    # |a - b|^2 = 2 - 2 a b for unit vectors.
    expected = (2 - 2 * cosine).mean()

    loss = penultimate_loss(student, teacher)

    assert_close(loss, expected)


def test_zero_features_are_at_distance_one_and_get_no_gradient():
    student, teacher = draw_pair(2, n=3)
    # Row 0: only the student is zero, row 1: only the teacher, row 2: both.
    student[[0, 2]] = 0
    teacher[[1, 2]] = 0
    student = student.float().requires_grad_()

    for row, expected in enumerate([1.0, 1.0, 0.0]):
        loss = penultimate_loss(student[[row]], teacher[[row]])
        assert loss.item() == pytest.approx(expected)

    loss = penultimate_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)

    # Without a direction there is none to follow; a division by the length would give nan.
    assert (gradient[[0, 2]] == 0).all()
    assert gradient.isfinite().all()


def test_the_divergence_at_a_high_temperature_is_half_the_centered_loss():
    student, teacher = draw_pair(3)
    # Hinton et al. 2015, sec. 2.1: T^2 keeps the size of the gradient.
    temperature = 1e4

    divergence = kl_divergence(teacher / temperature, student / temperature)
    scaled_divergence = temperature**2 * divergence.mean()
    expected = centered_logits_loss(student, teacher) / 2

    assert_close(scaled_divergence, expected, rtol=1e-3, atol=0)


# --- the objective


def slow_softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    total = sum(powers)
    return [power / total for power in powers]


def slow_divergence(p: list[float], q: list[float]) -> float:
    total = 0.0
    for p_k, q_k in zip(p, q, strict=True):
        total += p_k * math.log(p_k / q_k)
    return total


def slow_kl_loss(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 times the mean of KL(teacher || student)."""
    divergences = []
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = slow_softmax(z_t, temperature)
        q = slow_softmax(z_s, temperature)
        divergences.append(slow_divergence(p, q))
    return temperature**2 * statistics.fmean(divergences)


def test_the_latent_loss_is_the_weighted_sum_of_its_terms():
    student, teacher = draw_pair(4)
    # Features and logits need not have one width.
    student_features, teacher_features = draw_pair(5, width=3)
    logits_term = centered_logits_loss(student, teacher)
    features_term = penultimate_loss(student_features, teacher_features)
    kl_term = slow_kl_loss(student, teacher, 4.0)
    # The weights of WEIGHTS.
    expected_loss = 2.0 * logits_term + 3.0 * features_term + 0.5 * kl_term

    result = latent_loss(student, teacher, student_features, teacher_features, **WEIGHTS)
    found_kl_term = result["kl_loss"].item()

    assert list(result) == ["loss", "logits_loss", "penultimate_loss", "kl_loss"]
    assert result["logits_loss"] == logits_term
    assert result["penultimate_loss"] == features_term
    assert found_kl_term == pytest.approx(kl_term)
    assert_close(result["loss"], expected_loss)


def test_without_its_weight_the_divergence_is_left_out():
    weights = {**WEIGHTS, "kl_weight": 0.0}
    result = latent_loss(*draw_pair(6), *draw_pair(7), **weights)

    assert list(result) == ["loss", "logits_loss", "penultimate_loss"]

    expected = 2.0 * result["logits_loss"] + 3.0 * result["penultimate_loss"]
    assert_close(result["loss"], expected)


def test_a_student_that_agrees_has_no_loss_and_no_gradient():
    _, teacher = draw_pair(8)
    _, teacher_features = draw_pair(9)
    # Up to a constant and a length, which the losses do not see.
    student = (teacher + 5.0).requires_grad_()
    student_features = (3.0 * teacher_features).requires_grad_()

    result = latent_loss(student, teacher, student_features, teacher_features, **WEIGHTS)
    loss = result["loss"]

    assert 0 <= loss < 1e-12

    gradients = torch.autograd.grad(loss, (student, student_features))
    for gradient in gradients:
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_gradcheck(kl_weight):
    student, teacher = draw_pair(10, n=4)
    student_features, teacher_features = draw_pair(11, n=4)
    student.requires_grad_()
    student_features.requires_grad_()
    weights = {**WEIGHTS, "kl_weight": kl_weight}

    def loss(logits: Tensor, features: Tensor) -> Tensor:
        result = latent_loss(logits, teacher, features, teacher_features, **weights)
        return result["loss"]

    assert torch.autograd.gradcheck(loss, (student, student_features))


def bf16_with_grad(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().requires_grad_()


def test_the_loss_is_float32_and_the_teacher_gets_no_gradient():
    tensors = draw_pair(12) + draw_pair(13)
    student, teacher, student_features, teacher_features = map(bf16_with_grad, tensors)
    result = latent_loss(student, teacher, student_features, teacher_features, **WEIGHTS)

    # The other entries are for the history.
    for name, value in result.items():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.requires_grad == (name == "loss")

    result["loss"].backward()
    assert student.grad is not None
    assert student_features.grad is not None
    assert teacher.grad is None
    assert teacher_features.grad is None


def test_the_host_never_reads_a_tensor():
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    logits = torch.empty(7, 5, device="meta")
    features = torch.empty(7, 3, device="meta")
    result = latent_loss(logits, logits, features, features, **WEIGHTS)

    assert result["loss"].shape == ()


@pytest.mark.parametrize(
    ("loss", "tensors"), [(centered_logits_loss, "logits"), (penultimate_loss, "features")]
)
def test_different_shapes_are_refused(loss, tensors):
    student, teacher = draw_pair(16)
    narrower_student = student[:, :4]
    message = rf"teacher {tensors} must have one shape, got \(7, 4\) and \(7, 5\)"

    with pytest.raises(ValueError, match=message):
        loss(narrower_student, teacher)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logits_weight": -1.0}, "at least 0 and one of them positive, got {'logits_weight'"),
        (
            {"logits_weight": 0.0, "penultimate_weight": 0.0, "kl_weight": 0.0},
            "at least 0 and one of them positive, got {'logits_weight'",
        ),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
    ],
)
def test_impossible_weights_are_refused(wrong, message):
    weights = {**WEIGHTS, **wrong}
    with pytest.raises(ValueError, match=message):
        latent_loss(*draw_pair(16), *draw_pair(17), **weights)
