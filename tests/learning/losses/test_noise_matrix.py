"""The noise matrix and its objective: slow references, limits, and label noise that is known and found again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pu_kd_pipeline.learning.losses.distillation import kd_loss
from pu_kd_pipeline.learning.losses.noise_matrix import (
    NoiseMatrix,
    noisy_kd_loss,
    pseudo_label_loss,
)

N_CLASSES = 5


def batch(seed: int, n: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits and a row-stochastic matrix, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, n, N_CLASSES, generator=generator, dtype=torch.float64)
    return (
        student,
        teacher,
        torch.randn(N_CLASSES, N_CLASSES, generator=generator, dtype=torch.float64).softmax(1),
    )


def slow_pseudo_label_loss(student: Tensor, teacher: Tensor, matrix: Tensor) -> Tensor:
    """One sample and one class at a time, from probabilities."""
    total = torch.zeros((), dtype=student.dtype)
    for z_s, z_t in zip(student, teacher, strict=True):
        label = max(range(len(z_t)), key=lambda k, z_t=z_t: z_t[k].item())
        shares = torch.exp(z_s) / sum(torch.exp(z_s))
        total = total - torch.log(sum(shares[k] * matrix[k, label] for k in range(len(z_s))))
    return total / len(student)


def assert_row_stochastic(matrix: Tensor) -> None:
    assert (matrix > 0).all()
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(len(matrix)))


# --- the matrix


@pytest.mark.parametrize("learns_diagonal", [False, True])
@pytest.mark.parametrize(("n_classes", "diagonal"), [(2, 0.6), (10, 0.9523), (100, 0.7774)])
def test_the_matrix_starts_from_the_diagonal_and_is_uniform_beside_it(
    n_classes, diagonal, learns_diagonal
):
    matrix = NoiseMatrix(n_classes, diagonal, learns_diagonal=learns_diagonal)()
    expected = torch.full((n_classes, n_classes), (1 - diagonal) / (n_classes - 1)).fill_diagonal_(
        diagonal
    )
    torch.testing.assert_close(matrix, expected, rtol=1e-5, atol=1e-7)


def test_the_matrix_equals_the_loop_over_its_entries():
    noise = NoiseMatrix(N_CLASSES, 0.8, learns_diagonal=True).double()
    for parameter in noise.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    matrix, v, a = (
        part.detach() for part in (noise(), noise.off_diagonal_logits, noise.diagonal_logits)
    )
    for k in range(N_CLASSES):
        right = 1 / (1 + math.exp(-a[k]))
        others = {j: math.exp(v[k, j]) for j in range(N_CLASSES) if j != k}
        for j in range(N_CLASSES):
            expected = right if j == k else (1 - right) * others[j] / sum(others.values())
            assert matrix[k, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("learns_diagonal", [False, True])
def test_rows_stay_distributions_and_a_held_diagonal_stays_where_it_is(learns_diagonal):
    generator = torch.Generator().manual_seed(1)
    noise = NoiseMatrix(N_CLASSES, 0.8, learns_diagonal=learns_diagonal)
    start = noise().detach()
    optimizer = torch.optim.SGD(noise.parameters(), lr=1.0, momentum=0.9, weight_decay=0.05)
    for _ in range(30):
        student, teacher = 3 * torch.randn(2, 16, N_CLASSES, generator=generator)
        optimizer.zero_grad()
        noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)["loss"].backward()
        optimizer.step()
        assert_row_stochastic(noise().detach())
    moved = noise().detach() != start
    assert moved[~torch.eye(N_CLASSES, dtype=torch.bool)].all()
    assert moved.diagonal().all() if learns_diagonal else not moved.diagonal().any()


def test_a_saved_matrix_is_loaded_as_it_was():
    noise, other = NoiseMatrix(N_CLASSES, 0.8), NoiseMatrix(N_CLASSES, 0.6)
    nn.init.normal_(noise.off_diagonal_logits)
    other.load_state_dict(noise.state_dict())
    torch.testing.assert_close(other(), noise())


def test_matrices_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="n_classes must be at least 2, got 1"):
        NoiseMatrix(1, 0.9)
    for diagonal in (0.1, 1.0, float("nan")):
        with pytest.raises(
            ValueError, match="between 1/10, where pseudo-labels say nothing, and 1, got"
        ):
            NoiseMatrix(10, diagonal)


# --- the losses


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9))
def test_the_loss_equals_the_loop_with_its_gradients(seed, n):
    student, teacher, matrix = batch(seed, n)
    inputs = (student.requires_grad_(), matrix.requires_grad_())
    fast, slow = (
        pseudo_label_loss(student, teacher, matrix),
        slow_pseudo_label_loss(student, teacher, matrix),
    )
    torch.testing.assert_close(fast, slow)
    for one, other in zip(
        torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_the_identity_gives_the_cross_entropy_with_pseudo_labels():
    student, teacher, _ = batch(1)
    student.requires_grad_()
    losses = (
        pseudo_label_loss(student, teacher, torch.eye(N_CLASSES, dtype=torch.float64)),
        functional.cross_entropy(student, teacher.argmax(dim=1)),
    )
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in losses))


def test_the_uniform_matrix_says_nothing_about_the_student():
    student, teacher, _ = batch(2)
    uniform = torch.full((N_CLASSES, N_CLASSES), 1 / N_CLASSES, dtype=torch.float64)
    loss = pseudo_label_loss(student.requires_grad_(), teacher, uniform)
    assert loss.item() == pytest.approx(math.log(N_CLASSES))
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(N_CLASSES)))
def test_the_order_of_the_classes_does_not_matter(seed, order):
    student, teacher, matrix = batch(seed)
    renamed = pseudo_label_loss(student[:, order], teacher[:, order], matrix[order][:, order])
    torch.testing.assert_close(renamed, pseudo_label_loss(student, teacher, matrix))
    assert renamed >= 0


def test_a_label_that_the_student_does_not_believe_costs_what_the_matrix_says():
    student = torch.tensor([[300.0, 0.0, 0.0]])
    loss = pseudo_label_loss(student, torch.tensor([[0.0, 1.0, 0.0]]), NoiseMatrix(3, 0.9)())
    assert loss.item() == pytest.approx(-math.log(0.05), rel=1e-5)


def test_probabilities_that_underflow_leave_loss_and_gradients_finite():
    student, matrix = (
        torch.tensor([[300.0, 0.0, 0.0]], requires_grad=True),
        torch.eye(3, requires_grad=True),
    )
    loss = pseudo_label_loss(student, torch.tensor([[0.0, 1.0, 0.0]]), matrix)
    loss.backward()
    assert all(values.isfinite().all() for values in (loss, student.grad, matrix.grad))


def test_the_objective_is_distillation_plus_the_weighted_pseudo_labels():
    student, teacher, matrix = batch(3)
    result = noisy_kd_loss(student, teacher, matrix, 4.0, 0.3)
    assert list(result) == ["loss", "kd_loss", "pseudo_label_loss", "diagonal"]
    assert result["kd_loss"] == kd_loss(student, teacher, 4.0)
    assert result["pseudo_label_loss"] == pseudo_label_loss(student, teacher, matrix)
    torch.testing.assert_close(
        result["loss"], result["kd_loss"] + 0.3 * result["pseudo_label_loss"]
    )
    assert result["diagonal"].item() == pytest.approx(
        sum(matrix[k, k].item() for k in range(N_CLASSES)) / N_CLASSES
    )
    assert noisy_kd_loss(student, teacher, matrix, 4.0, 0.0)["loss"] == kd_loss(
        student, teacher, 4.0
    )


@pytest.mark.parametrize("learns_diagonal", [False, True])
def test_gradcheck_of_student_and_matrix(learns_diagonal):
    student, teacher, _ = batch(4, n=4)
    noise = NoiseMatrix(N_CLASSES, 0.8, learns_diagonal=learns_diagonal).double()
    parameters = dict(noise.named_parameters())

    def loss(student: Tensor, *values: Tensor) -> Tensor:
        matrix = torch.func.functional_call(noise, dict(zip(parameters, values, strict=True)), ())
        return noisy_kd_loss(student, teacher, matrix, 4.0, 1.0)["loss"]

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), *parameters.values()))


def test_the_loss_is_float32_and_the_teacher_gets_no_gradient():
    student, teacher, _ = (tensor.bfloat16().requires_grad_() for tensor in batch(5))
    noise = NoiseMatrix(N_CLASSES, 0.8)
    result = noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)
    assert all(value.shape == () and value.dtype == torch.float32 for value in result.values())
    assert [name for name, value in result.items() if value.requires_grad] == ["loss"]
    result["loss"].backward()
    assert student.grad is not None
    assert noise.off_diagonal_logits.grad.abs().sum() > 0
    assert teacher.grad is None


def test_autocast_does_not_round_the_loss():
    student, teacher, _ = (tensor.float() for tensor in batch(6))
    noise = NoiseMatrix(N_CLASSES, 0.8)
    expected = noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)["loss"], expected
        )


def test_the_host_never_reads_a_tensor():
    student, teacher, _ = (tensor.to("meta") for tensor in batch(7))
    noise = NoiseMatrix(N_CLASSES, 0.8).to("meta")
    assert noisy_kd_loss(student, teacher, noise(), 4.0, 1.0)["loss"].shape == ()


def test_what_does_not_fit_is_refused():
    student, teacher, matrix = batch(8)
    with pytest.raises(ValueError, match=r"one shape, got \(9, 4\) and \(9, 5\)"):
        pseudo_label_loss(student[:, :4], teacher, matrix)
    with pytest.raises(ValueError, match=r"noise_matrix must be \(5, 5\), got \(4, 5\)"):
        noisy_kd_loss(student, teacher, matrix[:4], 4.0, 1.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        noisy_kd_loss(student, teacher, matrix, 0.0, 1.0)
    with pytest.raises(ValueError, match="pseudo_label_weight must be at least 0, got -1"):
        noisy_kd_loss(student, teacher, matrix, 4.0, -1.0)


# --- noise that is known

# Of each class, six labels in ten are right and most of the others are of the next class.
KNOWN_NOISE = (
    0.6 * torch.eye(4) + 0.3 * torch.eye(4).roll(1, dims=1) + 0.1 * torch.eye(4).roll(2, dims=1)
)


def noisy_problem(n: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Four clusters, their classes, and the logits of a teacher whose labels have the known noise."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(4, (n,), generator=generator)
    features = 4 * functional.one_hot(classes, 4) + torch.randn(n, 4, generator=generator)
    labels = torch.multinomial(KNOWN_NOISE[classes], 1, generator=generator).squeeze(1)
    return features, classes, 5.0 * functional.one_hot(labels, 4)


def test_beside_a_student_that_is_right_the_matrix_learns_the_counts():
    _, classes, teacher = noisy_problem()
    noise = NoiseMatrix(4, 0.9, learns_diagonal=True)
    optimizer = torch.optim.Adam(noise.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        pseudo_label_loss(100.0 * functional.one_hot(classes, 4), teacher, noise()).backward()
        optimizer.step()
    counts = torch.zeros(4, 4)
    for true, observed in zip(classes.tolist(), teacher.argmax(dim=1).tolist(), strict=True):
        counts[true, observed] += 1
    torch.testing.assert_close(
        noise().detach(), counts / counts.sum(dim=1, keepdim=True), atol=2e-3, rtol=0
    )


def test_a_student_beside_the_matrix_comes_nearer_to_the_truth_than_one_without():
    features, classes, teacher = noisy_problem()
    noise = NoiseMatrix(4, 0.6)

    def true_loss(matrix: nn.Module | None) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            student = nn.Linear(4, 4)
        learned = [*student.parameters(), *(matrix.parameters() if matrix else ())]
        optimizer = torch.optim.Adam(learned, lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            current = matrix() if matrix else torch.eye(4)
            pseudo_label_loss(student(features), teacher, current).backward()
            optimizer.step()
        return functional.cross_entropy(student(features), classes).item()

    with_matrix, without = true_loss(noise), true_loss(None)
    assert with_matrix < 0.25 * without
    torch.testing.assert_close(noise().detach(), KNOWN_NOISE, atol=0.05, rtol=0)


@pytest.mark.parametrize("learns_diagonal", [False, True])
def test_a_learned_diagonal_forgets_the_noise_of_a_teacher_that_can_be_followed(learns_diagonal):
    """Why it is held by default: the argmax of a teacher that is wrong everywhere is still no random label."""
    features = noisy_problem()[0]
    teacher = 2.0 * features.roll(1, dims=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = nn.Linear(4, 4)
    noise = NoiseMatrix(4, 0.6, learns_diagonal=learns_diagonal)
    optimizer = torch.optim.Adam([*student.parameters(), *noise.parameters()], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        result = noisy_kd_loss(student(features), teacher, noise(), 4.0, 1.0)
        result["loss"].backward()
        optimizer.step()
    if learns_diagonal:
        assert result["diagonal"] > 0.95
    else:
        assert result["diagonal"].item() == pytest.approx(0.6)
