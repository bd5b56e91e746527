"""Losses of logits: slow references with gradients, limits, and the min-max as one product."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from pu_kd_pipeline.learning.losses.distillation import (
    class_loss_mass,
    kd,
    kd_loss,
    kl_divergence,
    logit_mse,
    logit_mse_loss,
    robust_kd,
    robust_kl,
    soft_cross_entropy,
    soft_divergence,
    standardized,
    standardized_kd,
    standardized_kd_loss,
)
from tests.learning.generators import seeded_generator

TEMPERATURES = [1.0, 4.0]
BOTH = pytest.mark.parametrize("loss", [kd, robust_kd])


def batch(
    seed: int, n: int = 12, n_classes: int = 5, n_vectors: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Return student logits, teacher logits and weight vectors, float64."""
    generator = seeded_generator(seed)
    student = torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    teacher = torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    vectors = torch.rand(n_vectors, n_classes, generator=generator, dtype=torch.float64)
    # Larger logits than a unit normal, so that the softmax is not nearly uniform.
    return 2 * student, 2 * teacher, 2 * vectors


def robust_loss(student: Tensor, teacher: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    result = robust_kd(student, teacher, vectors, temperature)
    return result["loss"]


def slow_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of one sample, one class at a time."""
    teacher_powers = [math.exp(z / temperature) for z in teacher.tolist()]
    student_powers = torch.exp(student / temperature)
    teacher_sum = sum(teacher_powers)
    student_sum = student_powers.sum()

    total = torch.zeros((), dtype=student.dtype)
    for teacher_power, student_power in zip(teacher_powers, student_powers, strict=True):
        p_k = teacher_power / teacher_sum
        q_k = student_power / student_sum
        total = total - p_k * torch.log(q_k)
    return total


def slow_cross_entropies(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each sample, one sample at a time."""
    losses = []
    for student_i, teacher_i in zip(student, teacher, strict=True):
        loss = slow_cross_entropy(student_i, teacher_i, temperature)
        losses.append(loss)
    return torch.stack(losses)


def slow_weighted_losses(
    student: Tensor, teacher: Tensor, vectors: Tensor, temperature: float
) -> list[Tensor]:
    """Return the loss under each weight vector: Eq. 8-10 as a double loop."""
    n = len(student)
    losses = slow_cross_entropies(student, teacher, temperature)
    teacher_classes = teacher.argmax(dim=1)
    candidates = []
    for w in vectors:
        total = torch.zeros((), dtype=student.dtype)
        for loss, teacher_class in zip(losses, teacher_classes, strict=True):
            total = total + w[teacher_class] * loss
        mean = total / n
        candidates.append(temperature**2 * mean)
    return candidates


# --- plain distillation ---


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_cross_entropy_equals_the_slow_one(temperature: float) -> None:
    student, teacher, _ = batch(0)
    expected = slow_cross_entropies(student, teacher, temperature)
    losses = soft_cross_entropy(student, teacher, temperature)

    assert_close(losses, expected)

    loss = kd_loss(student, teacher, temperature)
    expected_loss = temperature**2 * expected.mean()

    assert_close(loss, expected_loss)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equal_logits_give_the_entropy_and_no_gradient(temperature: float) -> None:
    _, teacher, _ = batch(1)
    student = (teacher + 3.0).requires_grad_()  # softmax does not see a constant

    losses = soft_cross_entropy(student, teacher, temperature)
    distribution = torch.distributions.Categorical(logits=teacher / temperature)
    entropy = distribution.entropy()

    assert_close(losses.detach(), entropy)

    # The cross-entropy is least there.
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert_close(gradient, torch.zeros_like(gradient))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20))
def test_cross_entropy_is_never_below_the_entropy_of_the_teacher(
    seed: int, temperature: float
) -> None:
    student, teacher, _ = batch(seed)
    entropy = soft_cross_entropy(teacher, teacher, temperature)
    cross_entropy = soft_cross_entropy(student, teacher, temperature)

    assert (cross_entropy >= entropy - 1e-12).all()


def test_divergence_is_torchs_own_and_zero_for_equal_logits() -> None:
    teacher, student = torch.randn(2, 50, 7, generator=seeded_generator())
    log_p = teacher.log_softmax(1)
    log_q = student.log_softmax(1)
    terms = functional.kl_div(log_q, log_p, log_target=True, reduction="none")
    expected = terms.sum(1)

    divergence = kl_divergence(teacher, student)

    assert_close(divergence, expected, rtol=1e-4, atol=1e-5)

    of_equal_logits = kl_divergence(teacher, teacher + 3.0)
    assert (of_equal_logits < 1e-5).all()

    # Rounding of large logits must not make it negative.
    of_large_logits = kl_divergence(1e4 * teacher, student)
    assert (of_large_logits >= 0).all()


@BOTH
def test_temperature_squared_keeps_the_size_of_the_gradient(loss) -> None:
    student, teacher, vectors = batch(2)
    student.requires_grad_()
    one_vector = vectors[:1]

    def gradient_norm(temperature: float) -> Tensor:
        result = loss(student, teacher, one_vector, temperature)
        (gradient,) = torch.autograd.grad(result["loss"], student)
        return gradient.norm()

    # In the limit of large T the scaled gradient tends to (centered logits) / (N K), which does not
    # depend on T.
    at_200 = gradient_norm(200.0)
    at_400 = gradient_norm(400.0)

    assert_close(at_200, at_400, rtol=0.02, atol=0)


# --- the worst of several weightings ---


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    n_vectors=st.integers(1, 5),
    temperature=st.sampled_from(TEMPERATURES),
)
def test_one_product_equals_the_double_loop_with_its_gradient(
    seed: int, n: int, n_vectors: int, temperature: float
) -> None:
    student, teacher, vectors = batch(seed, n=n, n_vectors=n_vectors)
    student.requires_grad_()
    fast = robust_loss(student, teacher, vectors, temperature)
    candidates = slow_weighted_losses(student, teacher, vectors, temperature)
    # The min-max of Eq. 10: the student minimizes the worst of the candidates.
    slow = max(candidates)

    assert_close(fast, slow)

    (fast_gradient,) = torch.autograd.grad(fast, student)
    (slow_gradient,) = torch.autograd.grad(slow, student)

    assert_close(fast_gradient, slow_gradient)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_the_maximum_is_that_of_its_members_and_scales_with_the_weights(
    seed: int, factor: float
) -> None:
    student, teacher, vectors = batch(seed)
    loss = robust_loss(student, teacher, vectors, 1.0)
    members = []
    for w in vectors:
        one_vector = w.unsqueeze(0)
        member = robust_loss(student, teacher, one_vector, 1.0)
        members.append(member)

    assert loss == max(members)

    scaled = robust_loss(student, teacher, factor * vectors, 1.0)
    assert_close(scaled, factor * loss)


def test_equal_vectors_get_the_gradient_of_one_of_them() -> None:
    student, teacher, vectors = batch(10)
    student.requires_grad_()
    one_vector = vectors[:1]
    vectors = one_vector.expand(3, -1).clone().requires_grad_()
    loss = robust_loss(student, teacher, vectors, 1.0)
    loss.backward()

    assert vectors.grad is not None

    # A maximum that shares the gradient among ties would give all three a third.
    has_gradient = (vectors.grad != 0).any(dim=1)
    assert has_gradient.sum() == 1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_all_equal_weights_give_plain_distillation(temperature: float) -> None:
    student, teacher, vectors = batch(3)
    # The worst of equal candidates is each of them.
    ones = torch.ones_like(vectors)
    robust = robust_loss(student, teacher, ones, temperature)

    plain = kd_loss(student, teacher, temperature)

    assert_close(robust, plain)


def test_class_loss_mass_equals_the_loop_and_leaves_absent_classes_at_zero() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    classes = torch.tensor([2, 0, 2, 2])
    # Of four samples: 2 / 4 for class 0 and (1 + 4 + 8) / 4 for class 2.
    expected = torch.tensor([0.5, 0.0, 3.25, 0.0])

    mass = class_loss_mass(losses, classes, 4)

    assert_close(mass, expected)


def test_the_references_of_robust_kd_are_the_first_vector_alone_and_no_vector() -> None:
    student, teacher, vectors = batch(6)
    robust = robust_kd(student, teacher, vectors, 2.0)
    first = robust_loss(student, teacher, vectors[:1], 2.0)
    plain = kd_loss(student, teacher, 2.0)

    assert robust["estimated_weights_loss"] == first
    assert robust["estimated_weights_loss"] <= robust["loss"]
    assert_close(robust["kd_loss"], plain)


# --- both losses ---


def test_kd_is_the_plain_loss() -> None:
    student, teacher, vectors = batch(6)
    result = kd(student, teacher, vectors, 2.0)
    expected = kd_loss(student, teacher, 2.0)

    assert set(result) == {"loss"}
    assert result["loss"] == expected


@BOTH
def test_gradcheck_of_both_losses(loss) -> None:
    student, teacher, vectors = batch(4, n=5)
    student.requires_grad_()

    def of_student(logits: Tensor) -> Tensor:
        result = loss(logits, teacher, vectors, 2.0)
        return result["loss"]

    assert torch.autograd.gradcheck(of_student, student)


@BOTH
def test_the_loss_is_differentiable_and_everything_else_is_detached(loss) -> None:
    student, teacher, vectors = (tensor.bfloat16() for tensor in batch(5))
    student.requires_grad_()
    teacher.requires_grad_()
    result = loss(student, teacher, vectors, 2.0)

    # The other entries are for the history.
    assert result["loss"].dtype == torch.float32
    for key, value in result.items():
        assert value.shape == ()
        assert value.requires_grad == (key == "loss")

    result["loss"].backward()
    assert student.grad is not None
    assert teacher.grad is None


@BOTH
def test_the_host_never_reads_a_tensor(loss) -> None:
    # Tensors on the device "meta" have no values: reading one raises.
    student, teacher, vectors = (tensor.to("meta") for tensor in batch(7))
    result = loss(student, teacher, vectors, 2.0)

    assert result["loss"].shape == ()


def test_autocast_does_not_round_the_weighted_sum() -> None:
    student, teacher, vectors = (tensor.float() for tensor in batch(8))
    expected = robust_loss(student, teacher, vectors, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = robust_loss(student, teacher, vectors, 1.0)

    # A bfloat16 sum would differ by about 0.4 %.
    assert_close(loss, expected, rtol=1e-6, atol=0)


def test_logits_and_temperatures_that_do_not_fit_are_refused() -> None:
    student, teacher, _ = batch(9)
    four_classes = student[:, :4]

    with pytest.raises(ValueError, match=r"one shape, got \(12, 4\) and \(12, 5\)"):
        kd_loss(four_classes, teacher, 1.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        kd_loss(student, teacher, 0.0)


@pytest.mark.parametrize("shape", [(4, 3), (0, 5), (5,)])
def test_weight_vectors_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    student, teacher, _ = batch(9)
    vectors = torch.ones(shape, dtype=torch.float64)
    message = r"weight_vectors must be \(n, 5\) with n > 0.*got \("

    with pytest.raises(ValueError, match=message):
        robust_kd(student, teacher, vectors, 1.0)


def slow_standardized(logits: Tensor) -> Tensor:
    """Return the z-scores of the logits, sample by sample as the paper defines them."""
    rows = []
    for row in logits:
        mean = sum(row) / len(row)
        variance = sum((z - mean) ** 2 for z in row) / len(row)
        rows.append((row - mean) / variance**0.5)
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_standardized_kd_is_its_definition_with_the_same_gradient(temperature):
    student, teacher, _ = batch(0)
    student.requires_grad_()
    loss = standardized_kd_loss(student, teacher, temperature)
    slow = slow_cross_entropies(slow_standardized(student), slow_standardized(teacher), temperature)
    expected = temperature**2 * slow.mean()
    assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    [gradient] = torch.autograd.grad(loss, student)
    [expected_gradient] = torch.autograd.grad(expected, student)
    assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@given(scale=st.floats(0.1, 100.0), shift=st.floats(-50.0, 50.0))
@settings(deadline=None, max_examples=30)
def test_standardized_kd_does_not_see_scale_and_shift_of_the_logits(scale, shift):
    student, teacher, _ = batch(1)
    expected = standardized_kd_loss(student, teacher, 2.0)
    assert_close(standardized_kd_loss(scale * student + shift, teacher, 2.0), expected)
    assert_close(standardized_kd_loss(student, scale * teacher + shift, 2.0), expected)
    # An affine copy of the teacher is the minimum.
    least = standardized_kd_loss(teacher, teacher, 2.0)
    assert least <= expected


def test_equal_logits_of_a_sample_are_standardized_to_zero():
    constant = torch.full((3, 5), 2.5, requires_grad=True)
    assert torch.equal(standardized(constant), torch.zeros(3, 5))
    _, teacher, _ = batch(2, n=3)
    loss = standardized_kd_loss(constant, teacher.float(), 2.0)
    [gradient] = torch.autograd.grad(loss, constant)
    assert gradient.isfinite().all()


def test_logit_mse_is_half_the_mean_square_and_the_limit_of_kd():
    student, teacher, _ = batch(3)
    student.requires_grad_()
    loss = logit_mse_loss(student, teacher)
    slow = 0.0
    for student_i, teacher_i in zip(student.tolist(), teacher.tolist(), strict=True):
        squares = [(z_s - z_t) ** 2 for z_s, z_t in zip(student_i, teacher_i, strict=True)]
        slow += sum(squares) / (2 * len(squares))
    assert loss.item() == pytest.approx(slow / len(student))

    # Hinton et al. 2015, sec. 2.1: the gradients agree for large T where logits are centered.
    centered_student = (student - student.mean(dim=1, keepdim=True)).detach().requires_grad_()
    centered_teacher = teacher - teacher.mean(dim=1, keepdim=True)
    [limit] = torch.autograd.grad(
        logit_mse_loss(centered_student, centered_teacher), centered_student
    )
    hot = kd_loss(centered_student, centered_teacher, 1e4)
    [of_kd] = torch.autograd.grad(hot, centered_student)
    assert_close(of_kd, limit, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", [standardized_kd, logit_mse])
def test_logits_of_other_shapes_are_refused_and_the_teacher_gets_no_gradient(loss):
    student, teacher, vectors = batch(4)
    teacher.requires_grad_()
    student.requires_grad_()
    result = loss(student, teacher, vectors, 2.0)["loss"]
    assert torch.autograd.grad(result, teacher, allow_unused=True, retain_graph=True) == (None,)
    with pytest.raises(ValueError, match="must have one shape"):
        loss(student[:, :3], teacher, vectors, 2.0)


# --- the worst of several weightings, by the divergence ---


def slow_robust_kl(
    student: Tensor,
    teacher: Tensor,
    vectors: Tensor,
    temperature: float,
    is_labeled: Tensor,
    shift: Tensor,
) -> Tensor:
    """Return the loss as a double loop over vectors and samples."""
    candidates = []
    for w in vectors:
        total = torch.zeros((), dtype=student.dtype)
        for student_i, teacher_i, labeled_i in zip(student, teacher, is_labeled, strict=True):
            logits = student_i if labeled_i else student_i + shift
            weight = torch.ones((), dtype=w.dtype) if labeled_i else w[teacher_i.argmax()]
            cross_entropy = slow_cross_entropy(logits, teacher_i, temperature)
            entropy = slow_cross_entropy(teacher_i, teacher_i, temperature)
            total = total + weight * (cross_entropy - entropy)
        candidates.append(temperature**2 * total / len(student))
    return max(candidates)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 8),
    n_vectors=st.integers(1, 4),
    temperature=st.sampled_from(TEMPERATURES),
)
def test_robust_kl_equals_the_double_loop_with_its_gradient(
    seed: int, n: int, n_vectors: int, temperature: float
) -> None:
    student, teacher, vectors = batch(seed, n=n, n_vectors=n_vectors)
    student.requires_grad_()
    generator = seeded_generator(seed)
    is_labeled = torch.rand(n, generator=generator) < 0.3
    shift = torch.randn(5, generator=generator, dtype=torch.float64)
    fast = robust_kl(student, teacher, vectors, temperature, is_labeled, shift)["loss"]
    slow = slow_robust_kl(student, teacher, vectors, temperature, is_labeled, shift)
    assert_close(fast, slow)
    [fast_gradient] = torch.autograd.grad(fast, student)
    [slow_gradient] = torch.autograd.grad(slow, student)
    assert_close(fast_gradient, slow_gradient)


def unlabeled(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.bool)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equal_weights_give_the_gradient_of_plain_distillation(temperature: float) -> None:
    student, teacher, vectors = batch(3)
    student.requires_grad_()
    ones = torch.ones_like(vectors)
    result = robust_kl(student, teacher, ones, temperature, unlabeled(12))
    [gradient] = torch.autograd.grad(result["loss"], student)
    [expected] = torch.autograd.grad(kd_loss(student, teacher, temperature), student)
    assert_close(gradient, expected)
    assert_close(result["loss"].detach(), result["kl_loss"])
    # The same number less the teacher's entropy.
    entropy = temperature**2 * soft_cross_entropy(teacher, teacher, temperature).mean()
    assert_close(result["loss"].detach(), kd_loss(student, teacher, temperature).detach() - entropy)


def test_the_worst_class_is_that_of_the_wrong_student_not_that_of_the_frequent_class() -> None:
    # Nine images of class 0, which the student has learned, and one of class 1, which it has not.
    teacher = torch.tensor([[4.0, 0.0]] * 9 + [[0.0, 4.0]], dtype=torch.float64)
    student = torch.tensor([[4.0, 0.0]] * 10, dtype=torch.float64).requires_grad_()
    for_class_0, for_class_1 = [1.5, 0.5], [0.5, 1.5]
    vectors = torch.tensor([[1.0, 1.0], for_class_0, for_class_1], dtype=torch.float64)

    def weight_of_the_wrong_image(loss: Tensor) -> float:
        [gradient] = torch.autograd.grad(loss, student)
        alone = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
        plain = robust_kl(student, teacher, alone, 4.0, unlabeled(10))["loss"]
        [expected] = torch.autograd.grad(plain, student)
        return float(gradient[9, 0] / expected[9, 0])

    by_divergence = robust_kl(student, teacher, vectors, 4.0, unlabeled(10))["loss"]
    by_cross_entropy = robust_kd(student, teacher, vectors, 4.0)["loss"]
    assert weight_of_the_wrong_image(by_divergence) == pytest.approx(1.5)
    # At T = 4 the entropy of the teacher decides, which is that of the frequent class.
    assert weight_of_the_wrong_image(by_cross_entropy) == pytest.approx(0.5)


def test_labeled_images_weigh_one_whatever_their_class() -> None:
    student, teacher, vectors = batch(6)
    all_labeled = torch.ones(12, dtype=torch.bool)
    shift = torch.arange(5.0, dtype=torch.float64)
    result = robust_kl(student, teacher, 7 * vectors, 2.0, all_labeled, shift)
    assert_close(result["loss"], result["kl_loss"])
    assert result["loss"] == result["estimated_weights_loss"]


def test_a_student_of_adjusted_logits_prefers_rare_classes_by_the_shift() -> None:
    _, teacher, _ = batch(7)
    ones = torch.ones(1, 5, dtype=torch.float64)
    shift = torch.tensor([0.7, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64).log()
    student = (teacher - shift).requires_grad_()
    result = robust_kl(student, teacher, ones, 4.0, unlabeled(12), shift)
    assert result["loss"].item() == pytest.approx(0, abs=1e-12)
    [gradient] = torch.autograd.grad(result["loss"], student)
    assert_close(gradient, torch.zeros_like(gradient))

    # Softmax does not see a constant: the scale of the frequencies does not matter.
    other = teacher + 1.0
    of_shift = robust_kl(other, teacher, ones, 4.0, unlabeled(12), shift)
    of_larger = robust_kl(other, teacher, ones, 4.0, unlabeled(12), shift + 5.0)
    assert_close(of_shift["loss"], of_larger["loss"])
    of_none = robust_kl(other, teacher, ones, 4.0, unlabeled(12), torch.zeros_like(shift))
    assert_close(of_none["loss"], of_none["kl_loss"])


def test_robust_kl_is_differentiable_in_low_precision_and_reads_no_tensor_on_the_host() -> None:
    student, teacher, vectors = (tensor.bfloat16() for tensor in batch(5))
    student.requires_grad_()
    shift = torch.zeros(5)
    result = robust_kl(student, teacher, vectors.float(), 2.0, unlabeled(12), shift)
    assert result["loss"].dtype == torch.float32
    for key, value in result.items():
        assert value.requires_grad == (key == "loss")

    on_meta = (tensor.to("meta") for tensor in (student, teacher, vectors))
    of_meta = robust_kl(*on_meta, 2.0, unlabeled(12).to("meta"), shift.to("meta"))
    assert of_meta["loss"].shape == ()


def test_weight_vectors_that_do_not_fit_are_refused_by_the_divergence_too() -> None:
    student, teacher, _ = batch(9)
    with pytest.raises(ValueError, match=r"weight_vectors must be \(n, 5\)"):
        robust_kl(student, teacher, torch.ones(4, 3), 1.0, unlabeled(12))


def test_the_divergence_of_samples_is_that_of_softened_logits() -> None:
    student, teacher, _ = batch(0)
    expected = kl_divergence(teacher / 4, student / 4)
    assert_close(soft_divergence(student, teacher, 4.0), expected)
