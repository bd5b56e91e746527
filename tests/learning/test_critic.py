"""The PU critic: which gradients flow, its metrics, and when it has collapsed."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pu_kd_pipeline.learning.critic import (
    CriticTraining,
    FeatureAdapter,
    FeatureCritic,
    critic_accuracy,
    critic_auc,
    critic_collapse,
    critic_features,
)
from pu_kd_pipeline.learning.losses.critic import CriticMode, pu_critic_risk, student_critic_loss
from tests.learning.generators import seeded_generator

PRIOR = 0.4
MODES: tuple[CriticMode, ...] = ("clamp", "ascent", "gan")
D = 8  # width of the toy features


# --- the network


def linear_layers(critic: FeatureCritic) -> list[nn.Linear]:
    return [layer for layer in critic.layers if isinstance(layer, nn.Linear)]


def test_the_critic_is_lipschitz_with_the_stated_constant() -> None:
    torch.manual_seed(0)
    critic = FeatureCritic(D, lipschitz=5.0).train()
    layers = linear_layers(critic)
    for layer in layers:
        original = layer.parametrizations.weight.original  # type: ignore[union-attr]
        # Far from norm one, so that spectral norm has something to do.
        original.data.mul_(30.0)  # type: ignore[union-attr,operator]

    one_row = torch.zeros(1, D)
    for _ in range(100):  # power iterations
        critic(one_row)
    critic.eval()
    for layer in layers:
        spectral_norm = torch.linalg.matrix_norm(layer.weight, 2)
        assert spectral_norm.item() == pytest.approx(1.0, rel=1e-3)

    first, second = torch.randn(2, 2000, D)
    score_differences = (critic(first) - critic(second)).abs()
    distances = (first - second).norm(dim=1)
    slopes = score_differences / distances

    assert slopes.max() <= 5.0 * (1 + 1e-3)


def test_features_of_another_width_are_refused() -> None:
    critic = FeatureCritic(D)
    seven_wide = torch.zeros(3, 7)

    with pytest.raises(ValueError, match=r"reads features \(N, 8\), got \(3, 7\)"):
        critic(seven_wide)

    training = CriticTraining(critic, "gan")
    eight_wide = torch.zeros(3, D)

    with pytest.raises(ValueError, match=r"one width, got \(3, 7\) and \(3, 8\)"):
        training.step(eight_wide, seven_wide, PRIOR)


@pytest.mark.parametrize(
    ("d", "lipschitz", "message"),
    [
        (0, 1.0, "d must be at least 1 and lipschitz positive, got d=0, lipschitz=1"),
        (D, 0.0, "lipschitz=0"),
    ],
)
def test_impossible_sizes_are_refused(d: int, lipschitz: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureCritic(d, lipschitz)


# --- which gradients flow


def toy_batch() -> tuple[Tensor, Tensor]:
    """Features of the teacher and of the student, (16, D) unit vectors."""
    generator = seeded_generator(5)
    teacher = torch.randn(16, D, generator=generator)
    student = torch.randn(16, D, generator=generator)
    return functional.normalize(teacher, dim=1), functional.normalize(student, dim=1)


def copied_state(critic: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(critic.state_dict())


def test_the_students_loss_reaches_its_features_and_never_the_critic() -> None:
    training = CriticTraining(FeatureCritic(D), "clamp")
    critic = training.critic
    teacher, student = toy_batch()
    training.step(teacher, student, PRIOR)
    before = copied_state(critic)
    features = student.clone().requires_grad_()

    for _ in range(3):
        scores = critic(features)
        student_critic_loss(scores).backward()

    assert features.grad is not None
    assert (features.grad != 0).any()
    for parameter in critic.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad

    # Nor does the power iteration of spectral norm move.
    after = copied_state(critic)
    assert_close(after, before, rtol=0, atol=0)


def test_the_critics_step_reaches_the_critic_and_no_features() -> None:
    training = CriticTraining(FeatureCritic(D), "gan")
    teacher, student = toy_batch()
    teacher.requires_grad_()
    student.requires_grad_()
    before = copied_state(training.critic)
    result = training.step(teacher, student, PRIOR)

    assert teacher.grad is None
    assert student.grad is None
    for name, value in training.critic.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert set(result) == {"critic_loss", "critic_accuracy", "critic_auc", "clamped_share"}
    for value in result.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert not value.requires_grad


def test_the_step_reports_the_metrics_from_before_the_update() -> None:
    training = CriticTraining(FeatureCritic(D), "ascent")
    critic = training.critic
    teacher, student = toy_batch()
    both = torch.cat([teacher, student])
    before = copied_state(critic)
    critic.train()  # so that the power iteration takes the same step as in `step`
    scores = critic(both).detach()
    critic.load_state_dict(before)

    teacher_scores, student_scores = scores.split(16)
    risk = pu_critic_risk(teacher_scores, student_scores, PRIOR, "ascent")
    auc = critic_auc(teacher_scores, student_scores)
    result = training.step(teacher, student, PRIOR)

    assert_close(result["critic_loss"], risk.value)
    assert_close(result["critic_auc"], auc)
    assert result["clamped_share"] == float(risk.is_clamped)


def test_the_critics_step_may_come_between_the_students_forward_and_backward_pass() -> None:
    teacher, student = toy_batch()
    found = []

    for steps_between in (False, True):
        torch.manual_seed(0)  # the same critic both times
        training = CriticTraining(FeatureCritic(D), "clamp")
        features = student.clone().requires_grad_()
        loss = student_critic_loss(training.critic(features))
        if steps_between:
            training.step(teacher, features, PRIOR)
        loss.backward()
        found.append(features.grad)

    assert_close(found[0], found[1], rtol=0, atol=0)


class NoReading(TorchDispatchMode):
    """Fails where the host reads a value, for which it would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
def test_the_host_reads_no_value_in_a_step_nor_in_the_students_loss(mode: CriticMode) -> None:
    training = CriticTraining(FeatureCritic(D), mode)
    teacher, student = toy_batch()
    student.requires_grad_()

    with NoReading():  # type: ignore[no-untyped-call]
        training.step(teacher, student, PRIOR)
        student_scores = training.critic(student)
        student_critic_loss(student_scores).backward()

    # The check itself works.
    with pytest.raises(AssertionError), NoReading():  # type: ignore[no-untyped-call]
        bool(teacher.sum() > 0)


def test_a_failing_step_leaves_the_critic_frozen() -> None:
    training = CriticTraining(FeatureCritic(D), "clamp")
    with pytest.raises(ValueError, match="class_prior"):
        training.step(*toy_batch(), 1.5)
    assert not training.critic.training
    for parameter in training.critic.parameters():
        assert not parameter.requires_grad


def test_autocast_changes_no_score() -> None:
    critic = FeatureCritic(D).eval()
    adapter = FeatureAdapter([4], [D])
    vectors = torch.randn(5, 4)

    def score() -> Tensor:
        features = critic_features([vectors], adapter)
        return critic(features)

    expected = score()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score()

    assert_close(found, expected, rtol=0, atol=0)


# --- metrics and collapse


def slow_auc(teacher: list[int], student: list[int]) -> float:
    """Share of the pairs in which the teacher's score is higher; a tie is half a pair."""
    total = 0.0
    for teacher_score in teacher:
        for student_score in student:
            if teacher_score > student_score:
                total += 1.0
            elif teacher_score == student_score:
                total += 0.5
    n_pairs = len(teacher) * len(student)
    return total / n_pairs


# Few different values, so that ties are frequent.
small_scores = st.lists(st.integers(-3, 3), min_size=1, max_size=6)


def slow_accuracy(teacher: list[int], student: list[int]) -> float:
    """Mean of the accuracies on the two networks; a score of zero counts for the student."""
    n_teacher_correct = sum(score > 0 for score in teacher)
    n_student_correct = sum(score <= 0 for score in student)
    teacher_accuracy = n_teacher_correct / len(teacher)
    student_accuracy = n_student_correct / len(student)
    return (teacher_accuracy + student_accuracy) / 2


@settings(deadline=None, max_examples=60)
@given(teacher=small_scores, student=small_scores)
def test_accuracy_and_auc_equal_the_counts(teacher: list[int], student: list[int]) -> None:
    teacher_scores = torch.tensor(teacher).float()
    student_scores = torch.tensor(student).float()

    accuracy = critic_accuracy(teacher_scores, student_scores).item()
    expected_accuracy = slow_accuracy(teacher, student)

    assert accuracy == pytest.approx(expected_accuracy)

    auc = critic_auc(teacher_scores, student_scores).item()
    expected_auc = slow_auc(teacher, student)

    assert auc == pytest.approx(expected_auc, abs=1e-6)

    # The AUC of the reversed question is the rest.
    swapped = critic_auc(student_scores, teacher_scores).item()
    assert auc + swapped == pytest.approx(1.0, abs=1e-6)


def test_the_host_reads_no_value_of_accuracy_and_auc() -> None:
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    teacher = torch.empty(4, device="meta")
    student = torch.empty(9, device="meta")

    accuracy = critic_accuracy(teacher, student)
    auc = critic_auc(teacher, student)

    assert accuracy.shape == ()
    assert auc.shape == ()


collapses = pytest.mark.parametrize(
    ("auc", "clamped_share", "reason"),
    [
        (0.8, 0.3, None),
        (0.51, 0.0, "no information: it ranks teacher above student features in 51.0% of the"),
        (0.3, 0.0, "cannot keep up: it ranks teacher above student features in 30.0% of the"),
        (0.999, 0.2, "always wins: .* in 99.9%"),
        (0.999, 1.0, "below zero in 100.0% of its last steps: the class prior is higher"),
    ],
)


HEALTHY = np.full(12, 0.75)  # three quarters of a history


@collapses
def test_only_the_last_quarter_decides_whether_the_critic_collapsed(
    auc: float, clamped_share: float, reason: str | None
) -> None:
    late_auc = np.append(HEALTHY, [auc] * 4)
    late_share = np.append(HEALTHY, [clamped_share] * 4)
    found = critic_collapse(late_auc, late_share)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found)

    # The same values before the last quarter do not count.
    early_auc = np.append([auc] * 12, HEALTHY[:4])
    early_share = np.append([clamped_share] * 12, HEALTHY[:4])

    assert critic_collapse(early_auc, early_share) is None


@pytest.mark.parametrize(("auc", "clamped_share"), [([], []), ([0.5], [0.0, 0.0])])
def test_histories_without_records_or_of_two_lengths_are_refused(
    auc: list[float], clamped_share: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"must be \(n,\) with n > 0"):
        critic_collapse(np.array(auc), np.array(clamped_share))
