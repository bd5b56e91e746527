"""What the PU critic learns where teacher and student features are Gaussians on a sphere."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.learning.critic import (
    CriticTraining,
    FeatureCritic,
    critic_auc,
    critic_collapse,
)
from pu_kd_pipeline.learning.losses.critic import CriticMode, student_critic_loss
from tests.learning.generators import seeded_generator

MODES: tuple[CriticMode, ...] = ("clamp", "ascent", "gan")
D = 8  # width of the toy features


def gaussians(n: int, angle: float, generator: torch.Generator) -> Tensor:
    """Rows of unit norm around one direction, turned by `angle` toward another."""
    mean = torch.zeros(D)
    mean[0] = math.cos(angle)
    mean[1] = math.sin(angle)
    noise = torch.randn(n, D, generator=generator)
    rows = mean + 0.1 * noise
    return functional.normalize(rows, dim=1)


def mean_of_records(records: list[dict[str, Tensor]]) -> dict[str, float]:
    means = {}
    for name in records[0]:
        values = torch.stack([record[name] for record in records])
        means[name] = values.mean().item()
    return means


@functools.cache  # several tests look at the same training
def trained(
    mode: CriticMode,
    *,
    shift: float,
    share: float,
    class_prior: float,
    lipschitz: float = 20.0,
) -> tuple[CriticTraining, dict[str, float]]:
    """Train a critic and return it with the metrics of the last quarter of its training.

    Args:
        mode: of the critic.
        shift: angle between the teacher's features and those student features that differ.
        share: share of the student's features that are distributed as the teacher's.
        class_prior: of the critic.
        lipschitz: of the critic.
    """
    n_updates = 150  # enough for D = 8
    n = 128
    n_alike = round(share * n)
    n_shifted = n - n_alike
    torch.manual_seed(0)
    generator = seeded_generator(1)
    critic = FeatureCritic(D, lipschitz)
    training = CriticTraining(critic, mode, learning_rate=2e-3)
    records = []
    for _ in range(n_updates):
        alike = gaussians(n_alike, 0.0, generator)
        shifted = gaussians(n_shifted, shift, generator)
        student = torch.cat([alike, shifted])
        teacher = gaussians(n, 0.0, generator)
        record = training.step(teacher, student, class_prior)
        records.append(record)
    late_records = records[-n_updates // 4 :]
    return training, mean_of_records(late_records)


@torch.no_grad()
def mean_scores(training: CriticTraining, shift: float) -> tuple[float, float]:
    """Mean scores of fresh features like the teacher's and of shifted ones."""
    generator = seeded_generator(2)
    alike = gaussians(2000, 0.0, generator)
    shifted = gaussians(2000, shift, generator)
    alike_scores = training.critic(alike)
    shifted_scores = training.critic(shifted)
    return alike_scores.mean().item(), shifted_scores.mean().item()


@pytest.mark.parametrize("mode", MODES)
def test_the_critic_separates_two_gaussians(mode: CriticMode) -> None:
    training, late = trained(mode, shift=1.0, share=0.0, class_prior=0.05)
    alike, shifted = mean_scores(training, shift=1.0)

    assert alike > 1.0
    assert shifted < 0.0
    assert late["critic_accuracy"] > 0.9
    assert late["critic_auc"] > 0.99


def softplus(score: float) -> float:
    return math.log1p(math.exp(score))


def test_a_pu_critic_insists_that_the_share_of_the_prior_passes() -> None:
    pu, late = trained("ascent", shift=1.0, share=0.0, class_prior=0.3)
    gan, _ = trained("gan", shift=1.0, share=0.0, class_prior=0.3)
    pu_alike, pu_shifted = mean_scores(pu, shift=1.0)
    _, gan_shifted = mean_scores(gan, shift=1.0)
    # The branch holds E_s sp(C) at pi E_t sp(C).
    passed_share = softplus(pu_shifted) / softplus(pu_alike)

    assert passed_share == pytest.approx(0.3, abs=0.1)
    assert 0 < late["clamped_share"] < 1
    assert gan_shifted < -2.0 < pu_shifted


@pytest.mark.parametrize("mode", MODES)
def test_the_critic_cannot_separate_equal_gaussians(mode: CriticMode) -> None:
    training, late = trained(mode, shift=0.0, share=0.0, class_prior=0.3)
    generator = seeded_generator(3)
    teacher = gaussians(2000, 0.0, generator)
    student = gaussians(2000, 0.0, generator)
    with torch.no_grad():
        teacher_scores = training.critic(teacher)
        student_scores = training.critic(student)

    auc = critic_auc(teacher_scores, student_scores).item()
    mean_score = teacher_scores.mean().item()

    assert auc == pytest.approx(0.5, abs=0.03)
    assert late["critic_accuracy"] == pytest.approx(0.5, abs=0.05)

    # A PU critic knows no more than the prior, a GAN critic that both are equally frequent.
    expected_score = math.log(0.3 / 0.7)
    if mode == "gan":
        expected_score = 0.0

    assert mean_score == pytest.approx(expected_score, abs=0.3)


@pytest.mark.parametrize("mode", ["clamp", "ascent"])
def test_a_pu_critic_does_not_push_down_student_features_as_good_as_the_teachers(
    mode: CriticMode,
) -> None:
    pu, _ = trained(mode, shift=1.0, share=0.5, class_prior=0.5)
    gan, _ = trained("gan", shift=1.0, share=0.5, class_prior=0.5)
    pu_alike, pu_shifted = mean_scores(pu, shift=1.0)
    gan_alike, gan_shifted = mean_scores(gan, shift=1.0)
    # p_t / p_s = 2 there, because half of the student's features are the teacher's.
    log_density_ratio = math.log(2.0)

    assert gan_alike == pytest.approx(log_density_ratio, abs=0.3)
    assert pu_alike > gan_alike + 1.0
    assert gan_shifted < pu_shifted < -1.0

    # A sample's gradient is sigma(-C): for a sample that is fine already, the PU critic removes
    # most of it.
    pu_pull = torch.tensor(-pu_alike).sigmoid()
    gan_pull = torch.tensor(-gan_alike).sigmoid()

    assert pu_pull < gan_pull / 2


def test_at_lipschitz_one_pu_and_gan_differ_by_a_constant_and_only_the_auc_sees_the_ranking() -> (
    None
):
    options = {"shift": 0.3, "share": 0.0, "class_prior": 0.3, "lipschitz": 1.0}
    pu, late = trained("clamp", **options)
    gan, _ = trained("gan", **options)
    pu_alike, pu_shifted = mean_scores(pu, shift=0.3)
    gan_alike, gan_shifted = mean_scores(gan, shift=0.3)
    pu_difference = pu_alike - pu_shifted
    gan_difference = gan_alike - gan_shifted

    # A critic this flat cannot reach the scores that its risk asks for.
    assert pu_difference == pytest.approx(gan_difference, rel=0.1)
    assert late["clamped_share"] == 0
    assert late["critic_accuracy"] == pytest.approx(0.5, abs=0.02)
    assert late["critic_auc"] > 0.9


def test_a_prior_that_is_too_high_is_clamped_and_ascent_takes_it_back() -> None:
    _, clamp = trained("clamp", shift=1.0, share=0.0, class_prior=0.9)
    _, ascent = trained("ascent", shift=1.0, share=0.0, class_prior=0.9)

    assert clamp["clamped_share"] > 0.3
    assert 0 < ascent["clamped_share"] < clamp["clamped_share"]


def test_following_the_students_gradient_raises_its_scores() -> None:
    training, _ = trained("clamp", shift=1.0, share=0.0, class_prior=0.3)
    student = gaussians(16, 0.5, seeded_generator(5)).requires_grad_()
    before = training.critic(student)

    loss = student_critic_loss(before)
    (gradient,) = torch.autograd.grad(loss, student)
    moved_student = student - 0.1 * gradient
    after = training.critic(moved_student)

    assert after.mean() > before.mean()


@pytest.mark.parametrize(
    ("mode", "shift", "reason"),
    [("clamp", 0.1, None), ("clamp", 0.0, "no information"), ("gan", 1.0, "always wins")],
)
def test_training_histories_separate_a_healthy_critic_from_collapsed_ones(
    mode: CriticMode, shift: float, reason: str | None
) -> None:
    _, late = trained(mode, shift=shift, share=0.0, class_prior=0.3)
    auc = np.array([late["critic_auc"]])
    clamped_share = np.array([late["clamped_share"]])
    found = critic_collapse(auc, clamped_share)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found
