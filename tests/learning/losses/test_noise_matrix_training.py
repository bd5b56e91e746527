"""Training with the noise matrix on pseudo-labels whose noise is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.losses.noise_matrix import (
    NoiseMatrix,
    noisy_kd_loss,
    pseudo_label_loss,
)
from tests.learning.generators import seeded_generator

# Per class, six labels in ten are correct and most of the others are of the next class.
NEXT_CLASS = torch.eye(4).roll(1, dims=1)
KNOWN_NOISE = 0.6 * torch.eye(4) + 0.3 * NEXT_CLASS + 0.1 * NEXT_CLASS.roll(1, dims=1)


def noisy_problem(n: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Features in four clusters, their classes, and logits of a teacher with the known noise."""
    generator = seeded_generator()
    classes = torch.randint(4, (n,), generator=generator)
    centers = 4 * functional.one_hot(classes, 4)
    noise = torch.randn(n, 4, generator=generator)
    features = centers + noise

    # The teacher is sure of a label that is drawn from the row of the true class.
    label_probabilities = KNOWN_NOISE[classes]
    labels = torch.multinomial(label_probabilities, 1, generator=generator)
    teacher = 5.0 * functional.one_hot(labels.squeeze(1), 4)
    return features, classes, teacher


def seeded_student() -> nn.Linear:
    with seeded(0):
        return nn.Linear(4, 4)


def test_with_a_student_that_is_correct_the_matrix_learns_the_counts():
    _, classes, teacher = noisy_problem()
    # Sure and correct, so that only the labels' noise is left to explain.
    student = 100.0 * functional.one_hot(classes, 4)
    noise = NoiseMatrix(4, 0.9, learns_diagonal=True)
    optimizer = torch.optim.Adam(noise.parameters(), lr=0.1)
    for _ in range(200):
        loss = pseudo_label_loss(student, teacher, noise())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    counts = torch.zeros(4, 4)
    pseudo_labels = teacher.argmax(dim=1)
    for true_class, pseudo_label in zip(classes, pseudo_labels, strict=True):
        counts[true_class, pseudo_label] += 1
    # The maximum likelihood estimate of Q.
    shares = counts / counts.sum(dim=1, keepdim=True)

    assert_close(noise().detach(), shares, atol=2e-3, rtol=0)


def true_loss_after_training(noise: NoiseMatrix | None) -> float:
    """Train on noisy labels, with a matrix or without, and return the loss on the true ones."""
    features, classes, teacher = noisy_problem()
    student = seeded_student()
    parameters = list(student.parameters())
    if noise is not None:
        parameters += noise.parameters()
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    matrix = torch.eye(4)
    for _ in range(300):
        if noise is not None:
            matrix = noise()
        loss = pseudo_label_loss(student(features), teacher, matrix)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    true_loss = functional.cross_entropy(student(features), classes)
    return true_loss.item()


def test_a_student_with_the_matrix_comes_nearer_to_the_truth_than_one_without():
    noise = NoiseMatrix(4, 0.6)
    with_matrix = true_loss_after_training(noise)
    without_matrix = true_loss_after_training(None)

    assert with_matrix < 0.25 * without_matrix
    assert_close(noise().detach(), KNOWN_NOISE, atol=0.05, rtol=0)


@pytest.mark.parametrize("learns_diagonal", [False, True])
def test_a_learned_diagonal_forgets_the_noise_of_a_teacher_that_can_be_followed(learns_diagonal):
    # Why the diagonal is fixed by default: a teacher that is wrong everywhere still has an argmax
    # that is a function of the image, and not a random label.
    features, _, _ = noisy_problem()
    teacher = 2.0 * features.roll(1, dims=1)
    student = seeded_student()
    noise = NoiseMatrix(4, 0.6, learns_diagonal=learns_diagonal)
    parameters = [*student.parameters(), *noise.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(200):
        result = noisy_kd_loss(student(features), teacher, noise(), 4.0, 1.0)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()

    diagonal = result["diagonal"].item()
    if learns_diagonal:
        assert diagonal > 0.95
    else:
        assert diagonal == pytest.approx(0.6)
