"""The noise matrix and its objective: slow references, gradients and limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from pu_kd_pipeline.learning.losses.distillation import kd_loss
from pu_kd_pipeline.learning.losses.noise_matrix import (
    NoiseMatrix,
    noisy_kd_loss,
    pseudo_label_loss,
)
from tests.learning.generators import seeded_generator

N_CLASSES = 5
IDENTITY = torch.eye(N_CLASSES, dtype=torch.float64)


def draw_batch(seed: int, n: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits and a row-stochastic matrix, float64."""
    generator = seeded_generator(seed)
    logits = torch.randn(2, n, N_CLASSES, generator=generator, dtype=torch.float64)
    # Larger logits than a unit normal, so that the softmax is not nearly uniform.
    student, teacher = 2 * logits
    scores = torch.randn(N_CLASSES, N_CLASSES, generator=generator, dtype=torch.float64)
    matrix = scores.softmax(dim=1)
    return student, teacher, matrix


# --- the matrix


def assert_same_loss_and_gradients(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    assert_close(found, expected)
    found_gradients = torch.autograd.grad(found, inputs)
    expected_gradients = torch.autograd.grad(expected, inputs)
    assert_close(found_gradients, expected_gradients)


@pytest.mark.parametrize("learns_diagonal", [False, True])
@pytest.mark.parametrize(("n_classes", "diagonal"), [(2, 0.6), (10, 0.9523), (100, 0.7774)])
def test_the_matrix_starts_from_the_diagonal_and_is_uniform_elsewhere(
    n_classes, diagonal, learns_diagonal
):
    noise = NoiseMatrix(n_classes, diagonal, learns_diagonal=learns_diagonal)
    matrix = noise()
    off_diagonal = (1 - diagonal) / (n_classes - 1)
    expected = torch.full((n_classes, n_classes), off_diagonal)
    expected.fill_diagonal_(diagonal)

    assert_close(matrix, expected, rtol=1e-5, atol=1e-7)


def slow_row(v_k: list[float], a_k: float, k: int) -> list[float]:
    """Q_kk = sigmoid(a_k) and Q_kj = (1 - Q_kk) softmax_{j != k}(v_k)_j."""
    q_kk = 1 / (1 + math.exp(-a_k))
    powers = [math.exp(v_kj) for v_kj in v_k]
    # The softmax is over the other classes alone.
    powers[k] = 0
    total = sum(powers)
    row = [(1 - q_kk) * power / total for power in powers]
    row[k] = q_kk
    return row


def slow_matrix(v: list[list[float]], a: list[float]) -> list[list[float]]:
    rows = []
    for k, v_k in enumerate(v):
        row = slow_row(v_k, a[k], k)
        rows.append(row)
    return rows


def test_the_matrix_equals_the_loop_over_its_entries():
    noise = NoiseMatrix(N_CLASSES, 0.8, learns_diagonal=True).double()
    generator = seeded_generator()
    for parameter in noise.parameters():
        nn.init.normal_(parameter, generator=generator)
    v = noise.off_diagonal_logits.tolist()
    a = noise.diagonal_logits.tolist()
    expected = torch.tensor(slow_matrix(v, a), dtype=torch.float64)

    assert_close(noise().detach(), expected)


@pytest.mark.parametrize("learns_diagonal", [False, True])
def test_rows_stay_distributions_and_a_fixed_diagonal_does_not_move(learns_diagonal):
    generator = seeded_generator(1)
    noise = NoiseMatrix(N_CLASSES, 0.8, learns_diagonal=learns_diagonal)
    start = noise().detach()
    # With weight decay, which must not reach a fixed diagonal.
    optimizer = torch.optim.SGD(noise.parameters(), lr=1.0, momentum=0.9, weight_decay=0.05)
    row_sums = torch.ones(N_CLASSES)

    for _ in range(30):
        student, teacher = 3 * torch.randn(2, 16, N_CLASSES, generator=generator)
        result = noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()

        matrix = noise().detach()
        assert (matrix > 0).all()
        assert_close(matrix.sum(dim=1), row_sums)

    has_moved = matrix != start
    is_diagonal = torch.eye(N_CLASSES, dtype=torch.bool)

    assert has_moved[~is_diagonal].all()
    assert (has_moved[is_diagonal] == learns_diagonal).all()


def test_a_saved_matrix_is_loaded_as_it_was():
    noise = NoiseMatrix(N_CLASSES, 0.8)
    nn.init.normal_(noise.off_diagonal_logits)
    # Another diagonal, which loading must replace.
    other = NoiseMatrix(N_CLASSES, 0.6)
    other.load_state_dict(noise.state_dict())

    assert_close(other(), noise())


@pytest.mark.parametrize("diagonal", [0.1, 1.0, math.nan])
def test_unusable_diagonals_are_refused(diagonal):
    message = "between 1/10, where pseudo-labels carry no information, and 1, got"
    with pytest.raises(ValueError, match=message):
        NoiseMatrix(10, diagonal)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="n_classes must be at least 2, got 1"):
        NoiseMatrix(1, 0.9)


# --- the loss of the pseudo-labels


def slow_pseudo_label_probability(z: Tensor, matrix: Tensor, pseudo_label: int) -> Tensor:
    """The probability that the noise turns the student's class into the pseudo-label."""
    powers = torch.exp(z)
    total = sum(powers)
    probability = torch.zeros((), dtype=z.dtype)
    for k, power in enumerate(powers):
        p_k = power / total
        probability = probability + p_k * matrix[k, pseudo_label]
    return probability


def slow_pseudo_label_loss(student: Tensor, teacher: Tensor, matrix: Tensor) -> Tensor:
    """One sample and one class at a time, from probabilities."""
    total = torch.zeros((), dtype=student.dtype)
    pseudo_labels = teacher.argmax(dim=1).tolist()
    for z, pseudo_label in zip(student, pseudo_labels, strict=True):
        probability = slow_pseudo_label_probability(z, matrix, pseudo_label)
        total = total - torch.log(probability)
    return total / len(student)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9))
def test_the_loss_equals_the_loop_with_its_gradients(seed, n):
    student, teacher, matrix = draw_batch(seed, n)
    student.requires_grad_()
    matrix.requires_grad_()

    fast = pseudo_label_loss(student, teacher, matrix)
    slow = slow_pseudo_label_loss(student, teacher, matrix)

    assert_same_loss_and_gradients(fast, slow, student, matrix)


def test_the_identity_gives_the_cross_entropy_with_pseudo_labels():
    student, teacher, _ = draw_batch(1)
    student.requires_grad_()

    found = pseudo_label_loss(student, teacher, IDENTITY)
    pseudo_labels = teacher.argmax(dim=1)
    expected = functional.cross_entropy(student, pseudo_labels)

    assert_same_loss_and_gradients(found, expected, student)


def test_under_the_uniform_matrix_the_student_gets_no_gradient():
    student, teacher, _ = draw_batch(2)
    student.requires_grad_()
    uniform = torch.full_like(IDENTITY, 1 / N_CLASSES)

    loss = pseudo_label_loss(student, teacher, uniform)
    (gradient,) = torch.autograd.grad(loss, student)
    # Every label is equally likely, whatever the student predicts.
    expected = math.log(N_CLASSES)

    assert loss.item() == pytest.approx(expected)
    assert gradient.abs().max() < 1e-12


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(N_CLASSES)))
def test_the_order_of_the_classes_does_not_matter(seed, order):
    student, teacher, matrix = draw_batch(seed)
    loss = pseudo_label_loss(student, teacher, matrix)
    # Rows are true classes and columns pseudo-labels: both are permuted.
    permuted_matrix = matrix[order][:, order]
    permuted_student = student[:, order]
    permuted_teacher = teacher[:, order]
    permuted_loss = pseudo_label_loss(permuted_student, permuted_teacher, permuted_matrix)

    assert_close(permuted_loss, loss)
    assert permuted_loss >= 0


# exp(-300) is 0 in float32.
CERTAIN_STUDENT = torch.tensor([[300.0, 0.0, 0.0]])
OTHER_TEACHER = torch.tensor([[0.0, 1.0, 0.0]])


def test_the_matrix_bounds_the_loss_of_a_label_without_student_probability():
    matrix = NoiseMatrix(3, 0.9)()
    loss = pseudo_label_loss(CERTAIN_STUDENT, OTHER_TEACHER, matrix)
    # Off the diagonal, (1 - 0.9) / 2 for each of two classes.
    expected = -math.log(0.05)

    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_probabilities_that_underflow_leave_loss_and_gradients_finite():
    student = CERTAIN_STUDENT.clone().requires_grad_()
    matrix = torch.eye(3, requires_grad=True)

    loss = pseudo_label_loss(student, OTHER_TEACHER, matrix)
    loss.backward()

    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert matrix.grad.isfinite().all()


# --- the objective


def test_the_objective_is_distillation_plus_the_weighted_pseudo_labels():
    student, teacher, matrix = draw_batch(3)
    distillation_term = kd_loss(student, teacher, 4.0)
    pseudo_label_term = pseudo_label_loss(student, teacher, matrix)
    result = noisy_kd_loss(student, teacher, matrix, 4.0, 0.3)
    expected_loss = distillation_term + 0.3 * pseudo_label_term
    mean_diagonal = matrix.diagonal().mean()

    assert list(result) == ["loss", "kd_loss", "pseudo_label_loss", "diagonal"]
    assert result["kd_loss"] == distillation_term
    assert result["pseudo_label_loss"] == pseudo_label_term
    assert_close(result["loss"], expected_loss)
    assert_close(result["diagonal"], mean_diagonal)


def test_without_a_weight_of_the_pseudo_labels_distillation_remains():
    student, teacher, matrix = draw_batch(3)
    result = noisy_kd_loss(student, teacher, matrix, 4.0, 0.0)
    expected = kd_loss(student, teacher, 4.0)
    assert result["loss"] == expected


@pytest.mark.parametrize("learns_diagonal", [False, True])
def test_gradcheck_of_student_and_matrix(learns_diagonal):
    student, teacher, _ = draw_batch(4, n=4)
    student.requires_grad_()
    noise = NoiseMatrix(N_CLASSES, 0.8, learns_diagonal=learns_diagonal).double()
    parameters = dict(noise.named_parameters())

    # gradcheck varies arguments, hence the parameters come in as such.
    def loss(student: Tensor, *values: Tensor) -> Tensor:
        named_values = dict(zip(parameters, values, strict=True))
        matrix = torch.func.functional_call(noise, named_values, ())
        result = noisy_kd_loss(student, teacher, matrix, 4.0, 1.0)
        return result["loss"]

    inputs = (student, *parameters.values())

    assert torch.autograd.gradcheck(loss, inputs)


def test_the_loss_is_float32_and_the_teacher_gets_no_gradient():
    student, teacher, _ = draw_batch(5)
    student = student.bfloat16().requires_grad_()
    teacher = teacher.bfloat16().requires_grad_()
    noise = NoiseMatrix(N_CLASSES, 0.8)

    result = noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)

    # The other entries are for the history.
    for name, value in result.items():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.requires_grad == (name == "loss")

    result["loss"].backward()
    matrix_gradient = noise.off_diagonal_logits.grad

    assert student.grad is not None
    assert matrix_gradient.abs().sum() > 0
    assert teacher.grad is None


def test_autocast_does_not_round_the_loss():
    student, teacher, _ = draw_batch(6)
    student = student.float()
    teacher = teacher.float()
    noise = NoiseMatrix(N_CLASSES, 0.8)

    expected = noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)

    assert_close(found["loss"], expected["loss"])


def test_the_host_never_reads_a_tensor():
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    student = torch.empty(9, N_CLASSES, device="meta")
    teacher = torch.empty(9, N_CLASSES, device="meta")
    noise = NoiseMatrix(N_CLASSES, 0.8).to("meta")

    result = noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)

    assert result["loss"].shape == ()


def test_shapes_that_do_not_fit_are_refused():
    student, teacher, matrix = draw_batch(8)
    four_classes = student[:, :4]
    four_rows = matrix[:4]

    with pytest.raises(ValueError, match=r"one shape, got \(9, 4\) and \(9, 5\)"):
        pseudo_label_loss(four_classes, teacher, matrix)
    with pytest.raises(ValueError, match=r"noise_matrix must be \(5, 5\), got \(4, 5\)"):
        noisy_kd_loss(student, teacher, four_rows, 4.0, 1.0)


@pytest.mark.parametrize(
    ("temperature", "weight", "message"),
    [
        (0.0, 1.0, "temperature must be positive, got 0"),
        (4.0, -1.0, "pseudo_label_weight must be at least 0, got -1"),
    ],
)
def test_impossible_temperatures_and_weights_are_refused(temperature, weight, message):
    student, teacher, matrix = draw_batch(8)
    with pytest.raises(ValueError, match=message):
        noisy_kd_loss(student, teacher, matrix, temperature, weight)
