"""The PU critic: risks by value and gradient, what it learns on toys, and who gets which gradient."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
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
from pu_kd_pipeline.learning.losses.attention_transfer import attention_transfer_loss
from pu_kd_pipeline.learning.losses.critic import (
    CriticMode,
    class_prior_at,
    critic_distillation,
    pu_critic_risk,
    ramp,
    student_critic_loss,
)

PRIOR = 0.4
MODES: tuple[CriticMode, ...] = ("clamp", "ascent", "gan")
# Student features score high as well: R_- > 0. Teacher high and student low: the student looks too negative, R_- < 0.
FREE = (torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.5, 1.5, -1.0, 2.0]))
CLAMPED = (torch.tensor([3.0, 2.5, 4.0]), torch.tensor([-3.0, -2.0, -4.0, -2.5]))
D = 8  # width of the toys' features


def with_grad(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].double().requires_grad_(), batch[1].double().requires_grad_()


def slow_terms(teacher: Tensor, student: Tensor, class_prior: float) -> tuple[Tensor, Tensor]:
    """R_p+ and R_- under the logistic loss, one score at a time."""
    positive = torch.stack([torch.log(1 + torch.exp(-c)) for c in teacher]).mean()
    positive_as_negative = torch.stack([torch.log(1 + torch.exp(c)) for c in teacher]).mean()
    unlabeled_as_negative = torch.stack([torch.log(1 + torch.exp(c)) for c in student]).mean()
    return class_prior * positive, unlabeled_as_negative - class_prior * positive_as_negative


def gradients(objective: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat(
        torch.autograd.grad(objective, inputs, allow_unused=True, materialize_grads=True)
    )


def scores(max_size: int = 6) -> st.SearchStrategy[Tensor]:
    return st.lists(st.floats(-30, 30), min_size=1, max_size=max_size).map(
        lambda values: torch.tensor(values, dtype=torch.float64)
    )


# --- risk


@pytest.mark.parametrize("mode", ["clamp", "ascent"])
def test_above_zero_both_pu_risks_are_the_whole_risk_by_value_and_gradient(
    mode: CriticMode,
) -> None:
    teacher, student = with_grad(FREE)
    risk = pu_critic_risk(teacher, student, PRIOR, mode)
    positive_risk, negative_risk = slow_terms(teacher, student, PRIOR)
    whole = positive_risk + negative_risk
    assert not risk.is_clamped
    torch.testing.assert_close(risk.value, whole.detach())
    torch.testing.assert_close(risk.objective, whole)
    torch.testing.assert_close(
        gradients(risk.objective, teacher, student), gradients(whole, teacher, student)
    )


def test_clamped_the_gradient_is_that_of_the_first_term_alone() -> None:
    teacher, student = with_grad(CLAMPED)
    risk = pu_critic_risk(teacher, student, PRIOR, "clamp")
    positive_risk, negative_risk = slow_terms(teacher, student, PRIOR)
    assert risk.is_clamped
    assert negative_risk < 0
    torch.testing.assert_close(risk.value, positive_risk.detach())
    torch.testing.assert_close(risk.objective, positive_risk)
    found = gradients(risk.objective, teacher, student)
    torch.testing.assert_close(found, gradients(positive_risk, teacher, student))
    assert (found[len(teacher) :] == 0).all()


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_ascent_follows_minus_gamma_times_the_negative_part_alone(gamma: float) -> None:
    teacher, student = with_grad(CLAMPED)
    risk = pu_critic_risk(teacher, student, PRIOR, "ascent", gamma=gamma)
    positive_risk, negative_risk = slow_terms(teacher, student, PRIOR)
    assert risk.is_clamped
    torch.testing.assert_close(risk.value, positive_risk.detach())
    expected = -gamma * gradients(negative_risk, teacher, student)
    torch.testing.assert_close(gradients(risk.objective, teacher, student), expected)


@pytest.mark.parametrize("batch", [FREE, CLAMPED])
def test_gan_is_the_cross_entropy_of_teacher_against_student_whatever_the_prior(
    batch: tuple[Tensor, Tensor],
) -> None:
    teacher, student = with_grad(batch)
    risk = pu_critic_risk(teacher, student, math.nan, "gan")
    labels = torch.cat([torch.ones_like(teacher), torch.zeros_like(student)])
    weight = torch.cat(
        [torch.ones_like(teacher) / len(teacher), torch.ones_like(student) / len(student)]
    )
    expected = functional.binary_cross_entropy_with_logits(
        torch.cat([teacher, student]), labels, weight=weight, reduction="sum"
    )
    assert not risk.is_clamped
    torch.testing.assert_close(risk.value, expected.detach())
    torch.testing.assert_close(
        gradients(risk.objective, teacher, student), gradients(expected, teacher, student)
    )


@settings(deadline=None, max_examples=40)
@given(score=st.floats(-20, 20), class_prior=st.floats(0.01, 0.99))
def test_equal_scores_give_a_cross_entropy_that_is_least_at_the_log_odds_of_the_prior(
    score: float, class_prior: float
) -> None:
    def risk(value: float) -> Tensor:
        same = torch.full((3,), value, dtype=torch.float64)
        return pu_critic_risk(same, same[:2], class_prior, "clamp").value

    expected = class_prior * math.log1p(math.exp(-score)) + (1 - class_prior) * math.log1p(
        math.exp(score)
    )
    assert risk(score).item() == pytest.approx(expected, rel=1e-9)
    entropy = -class_prior * math.log(class_prior) - (1 - class_prior) * math.log(1 - class_prior)
    assert risk(math.log(class_prior / (1 - class_prior))).item() == pytest.approx(
        entropy, rel=1e-9
    )
    assert risk(score) >= entropy - 1e-12


@settings(deadline=None, max_examples=60)
@given(teacher=scores(), student=scores(), class_prior=st.floats(0.01, 0.99))
def test_risks_are_never_negative_and_the_modes_agree_on_value_and_branch(
    teacher: Tensor, student: Tensor, class_prior: float
) -> None:
    clamp, ascent = (
        pu_critic_risk(teacher, student, class_prior, mode) for mode in ("clamp", "ascent")
    )
    positive_risk, negative_risk = slow_terms(teacher, student, class_prior)
    assert clamp.value == ascent.value >= 0
    assert clamp.is_clamped == ascent.is_clamped
    torch.testing.assert_close(
        clamp.value, positive_risk + max(negative_risk, torch.zeros_like(negative_risk))
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [FREE, CLAMPED])
def test_gradcheck_of_every_mode_in_both_branches(
    mode: CriticMode, batch: tuple[Tensor, Tensor]
) -> None:
    assert torch.autograd.gradcheck(
        lambda t, s: pu_critic_risk(t, s, PRIOR, mode, gamma=0.7).objective, with_grad(batch)
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_host_never_reads_a_tensor_of_the_risk(mode: CriticMode) -> None:
    teacher, student = torch.empty(4, device="meta"), torch.empty(9, device="meta")
    assert all(term.shape == () for term in pu_critic_risk(teacher, student, PRIOR, mode))
    assert critic_accuracy(teacher, student).shape == critic_auc(teacher, student).shape == ()


@pytest.mark.parametrize("mode", MODES)
def test_bf16_scores_are_averaged_in_float32(mode: CriticMode) -> None:
    teacher, student = (batch.bfloat16() for batch in CLAMPED)
    risk = pu_critic_risk(teacher, student, PRIOR, mode)
    assert (
        risk.objective.dtype
        == risk.value.dtype
        == student_critic_loss(student).dtype
        == torch.float32
    )
    torch.testing.assert_close(
        risk.value, pu_critic_risk(teacher.float(), student.float(), PRIOR, mode).value
    )


def test_risks_of_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="mode must be 'clamp', 'ascent' or 'gan', got 'wgan'"):
        pu_critic_risk(*FREE, PRIOR, "wgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 3 of the teacher and 0 of the student"):
        pu_critic_risk(FREE[0], torch.empty(0), PRIOR, "gan")
    for class_prior in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="class_prior must lie strictly between 0 and 1"):
            pu_critic_risk(*FREE, class_prior, "clamp")
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got 2"):
        pu_critic_risk(*FREE, PRIOR, "ascent", gamma=2.0)


# --- features


def maps(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 5, 2), (6, 2, 2), (3,))
    ]


def test_features_equal_the_slow_ones_and_have_norm_one_for_each_tap() -> None:
    features = critic_features(maps())
    rows = []
    for i in range(3):
        entries: list[Tensor] = []
        for feature_map in maps():
            average = [channel.sum() / channel.numel() for channel in feature_map[i]]
            length = sum(a**2 for a in average) ** 0.5
            entries.extend(a / length for a in average)
        rows.append(torch.stack(entries))
    torch.testing.assert_close(features, torch.stack(rows))
    torch.testing.assert_close(
        features.norm(dim=1), torch.full((3,), math.sqrt(3), dtype=torch.float64)
    )


def test_the_scale_of_a_tap_changes_nothing_and_bf16_maps_are_averaged_in_float32() -> None:
    scaled = [factor * tensor for factor, tensor in zip((0.01, 7.0, 1e3), maps(), strict=True)]
    torch.testing.assert_close(critic_features(scaled), critic_features(maps()))
    rounded = [tensor.bfloat16() for tensor in maps()]
    expected = critic_features([tensor.float() for tensor in rounded])
    torch.testing.assert_close(critic_features(rounded), expected, rtol=1e-6, atol=1e-6)


def test_gradcheck_of_the_features() -> None:
    first, *others = maps()
    assert torch.autograd.gradcheck(
        lambda tensor: critic_features([tensor, *others]), first.requires_grad_()
    )


def test_the_adapter_acts_on_vectors_as_a_pointwise_convolution_on_maps() -> None:
    adapter = FeatureAdapter([4, 6, 3], [4, 5, 2]).double()
    convolution = nn.Conv2d(6, 5, 1).double()
    linear = adapter.layers[1]
    assert isinstance(linear, nn.Linear)
    convolution.weight.data.copy_(linear.weight.data[..., None, None])
    convolution.bias.data.copy_(linear.bias.data)  # type: ignore[union-attr]
    first, second, third = maps()
    expected = critic_features([first, convolution(second), adapter.layers[2](third)])
    torch.testing.assert_close(critic_features([first, second, third], adapter), expected)


def test_tokens_and_maps_with_channels_last_are_averaged_over_their_places() -> None:
    first, *_ = maps()
    square = first[:, :, :2]  # (N, 4, 2, 2)
    tokens, channels_last = square.flatten(2).transpose(1, 2), square.permute(0, 2, 3, 1)
    torch.testing.assert_close(
        critic_features([tokens, channels_last]), critic_features([square, square])
    )


def test_the_adapter_leaves_equal_widths_alone() -> None:
    adapter = FeatureAdapter([4, 6, 3], [4, 6, 3])
    assert not list(adapter.parameters())
    torch.testing.assert_close(critic_features(maps(), adapter), critic_features(maps()))


def test_maps_that_make_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one tap"):
        critic_features([])
    with pytest.raises(
        ValueError,
        match=r"the tap '1' gives \(3,\); expected \(N, C, H, W\), \(N, T, C\) or \(N, C\)",
    ):
        critic_features([torch.zeros(3, 4), torch.zeros(3)])
    with pytest.raises(ValueError, match=r"got widths \[4, 6\] and \[4\]"):
        FeatureAdapter([4, 6], [4])
    with pytest.raises(ValueError, match="made for 2 taps, got 3"):
        critic_features(maps(), FeatureAdapter([4, 6], [4, 6]).double())


# --- critic


def gaussians(n: int, center: float, generator: torch.Generator) -> Tensor:
    """Rows of unit norm around one direction, turned by `center` toward another."""
    mean = torch.zeros(D)
    mean[0], mean[1] = math.cos(center), math.sin(center)
    return functional.normalize(mean + 0.1 * torch.randn(n, D, generator=generator), dim=1)


@functools.cache
def trained(
    mode: CriticMode,
    *,
    shift: float,
    share: float,
    class_prior: float,
    lipschitz: float = 20.0,
    n_updates: int = 150,
) -> tuple[CriticTraining, dict[str, float]]:
    """Train a critic where a share of the student's features is the teacher's and the rest is shifted."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    training = CriticTraining(FeatureCritic(D, lipschitz), mode, learning_rate=2e-3)
    n, n_alike = 128, round(share * 128)
    records = []
    for _ in range(n_updates):
        student = torch.cat(
            [gaussians(n_alike, 0.0, generator), gaussians(n - n_alike, shift, generator)]
        )
        records.append(training.step(gaussians(n, 0.0, generator), student, class_prior))
    late = records[-n_updates // 4 :]
    return training, {
        name: torch.stack([record[name] for record in late]).mean().item() for name in records[0]
    }


def mean_scores(training: CriticTraining, shift: float) -> tuple[float, float]:
    """Mean scores of fresh features like the teacher's and of shifted ones."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        alike, shifted = (
            training.critic(gaussians(2000, center, generator)).mean().item()
            for center in (0.0, shift)
        )
    return alike, shifted


def test_the_critic_is_lipschitz_with_the_stated_constant() -> None:
    torch.manual_seed(0)
    critic = FeatureCritic(D, lipschitz=5.0).train()
    for layer in critic.layers:
        if isinstance(layer, nn.Linear):
            layer.parametrizations.weight.original.data.mul_(30.0)  # type: ignore[union-attr,operator]
    for _ in range(100):  # power iterations
        critic(torch.zeros(1, D))
    critic.eval()
    for layer in critic.layers:
        if isinstance(layer, nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1.0, rel=1e-3)
    first, second = torch.randn(2, 2000, D)
    slopes = (critic(first) - critic(second)).abs() / (first - second).norm(dim=1)
    assert slopes.max() <= 5.0 * (1 + 1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_critic_separates_two_gaussians(mode: CriticMode) -> None:
    training, late = trained(mode, shift=1.0, share=0.0, class_prior=0.05)
    alike, shifted = mean_scores(training, shift=1.0)
    assert alike > 1.0
    assert shifted < 0.0
    assert late["critic_accuracy"] > 0.9
    assert late["critic_auc"] > 0.99


def test_a_pu_critic_insists_that_the_share_of_the_prior_passes() -> None:
    (pu, late), (gan, _) = (
        trained(mode, shift=1.0, share=0.0, class_prior=0.3) for mode in ("ascent", "gan")
    )
    alike, shifted = (
        functional.softplus(torch.tensor(score)) for score in mean_scores(pu, shift=1.0)
    )
    assert (shifted / alike).item() == pytest.approx(0.3, abs=0.1)
    assert 0 < late["clamped_share"] < 1
    assert mean_scores(gan, shift=1.0)[1] < -2.0 < mean_scores(pu, shift=1.0)[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_critic_cannot_separate_equal_gaussians(mode: CriticMode) -> None:
    training, late = trained(mode, shift=0.0, share=0.0, class_prior=0.3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        teacher, student = (training.critic(gaussians(2000, 0.0, generator)) for _ in range(2))
    assert critic_auc(teacher, student).item() == pytest.approx(0.5, abs=0.03)
    assert late["critic_accuracy"] == pytest.approx(0.5, abs=0.05)
    fair = 0.0 if mode == "gan" else math.log(0.3 / 0.7)
    assert teacher.mean().item() == pytest.approx(fair, abs=0.3)


@pytest.mark.parametrize("mode", ["clamp", "ascent"])
def test_a_pu_critic_does_not_push_down_the_student_features_that_are_as_good_as_the_teachers(
    mode: CriticMode,
) -> None:
    pu, gan = (trained(each, shift=1.0, share=0.5, class_prior=0.5)[0] for each in (mode, "gan"))
    pu_alike, pu_shifted = mean_scores(pu, shift=1.0)
    gan_alike, gan_shifted = mean_scores(gan, shift=1.0)
    assert gan_alike == pytest.approx(
        math.log(2.0), abs=0.3
    )  # p_t / p_s = 2 there: half of them are the student's
    assert pu_alike > gan_alike + 1.0
    assert gan_shifted < pu_shifted < -1.0
    # What pulls at a sample is sigma(-C): of a sample that needs none, the PU critic takes most of it away.
    pull = [torch.tensor(-score).sigmoid().item() for score in (pu_alike, gan_alike)]
    assert pull[0] < pull[1] / 2


def test_at_lipschitz_one_pu_and_gan_differ_by_a_constant_and_accuracy_misses_what_the_auc_sees() -> (
    None
):
    (pu, late), (gan, _) = (
        trained(mode, shift=0.3, share=0.0, class_prior=0.3, lipschitz=1.0)
        for mode in ("clamp", "gan")
    )
    (pu_alike, pu_shifted), (gan_alike, gan_shifted) = (
        mean_scores(each, shift=0.3) for each in (pu, gan)
    )
    assert pu_alike - pu_shifted == pytest.approx(gan_alike - gan_shifted, rel=0.1)
    assert late["clamped_share"] == 0
    assert late["critic_accuracy"] == pytest.approx(0.5, abs=0.02)
    assert late["critic_auc"] > 0.9


def test_a_prior_that_is_too_high_is_clamped_and_ascent_takes_it_back() -> None:
    _, clamp = trained("clamp", shift=1.0, share=0.0, class_prior=0.9)
    _, ascent = trained("ascent", shift=1.0, share=0.0, class_prior=0.9)
    assert clamp["clamped_share"] > 0.3
    assert 0 < ascent["clamped_share"] < clamp["clamped_share"]


def test_features_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reads features \(N, 8\), got \(3, 7\)"):
        FeatureCritic(D)(torch.zeros(3, 7))
    with pytest.raises(
        ValueError, match="d must be at least 1 and lipschitz positive, got d=0, lipschitz=1"
    ):
        FeatureCritic(0, 1.0)
    with pytest.raises(ValueError, match="lipschitz=0"):
        FeatureCritic(D, 0.0)
    with pytest.raises(ValueError, match=r"one width, got \(3, 7\) and \(3, 8\)"):
        CriticTraining(FeatureCritic(D), "gan").step(torch.zeros(3, D), torch.zeros(3, 7), PRIOR)


# --- who gets which gradient


def toy_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return gaussians(16, 0.0, generator), gaussians(16, 0.5, generator)


def state_of(critic: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in critic.state_dict().items()}


def test_the_students_loss_reaches_its_features_and_never_the_critic() -> None:
    training = CriticTraining(FeatureCritic(D), "clamp")
    teacher, student = toy_batch()
    training.step(teacher, student, PRIOR)
    before = state_of(training.critic)
    features = student.clone().requires_grad_()
    for _ in range(3):
        student_critic_loss(training.critic(features)).backward()
    assert features.grad is not None
    assert (features.grad != 0).any()
    assert all(
        parameter.grad is None and not parameter.requires_grad
        for parameter in training.critic.parameters()
    )
    for (
        name,
        value,
    ) in training.critic.state_dict().items():  # nor does spectral norm's power iteration move
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_following_the_students_gradient_raises_its_scores() -> None:
    training, _ = trained("clamp", shift=1.0, share=0.0, class_prior=0.3)
    _, student = toy_batch()
    student = student.requires_grad_()
    before = training.critic(student)
    (gradient,) = torch.autograd.grad(student_critic_loss(before), student)
    assert training.critic(student - 0.1 * gradient).mean() > before.mean()


def test_the_critics_step_reaches_the_critic_and_no_features() -> None:
    training = CriticTraining(FeatureCritic(D), "gan")
    teacher, student = (features.requires_grad_() for features in toy_batch())
    before = state_of(training.critic)
    result = training.step(teacher, student, PRIOR)
    assert teacher.grad is student.grad is None
    assert all(
        not torch.equal(value, before[name]) for name, value in training.critic.named_parameters()
    )
    assert set(result) == {"critic_loss", "critic_accuracy", "critic_auc", "clamped_share"}
    assert all(
        v.shape == () and v.dtype == torch.float32 and not v.requires_grad for v in result.values()
    )


def test_the_step_reports_the_batch_before_it_moved() -> None:
    training = CriticTraining(FeatureCritic(D), "ascent")
    teacher, student = toy_batch()
    training.critic.train()  # the same power iteration as in the step, taken on a copy of the state
    before = state_of(training.critic)
    scores = training.critic(torch.cat([teacher, student])).detach()
    training.critic.load_state_dict(before)
    risk = pu_critic_risk(scores[:16], scores[16:], PRIOR, "ascent")
    result = training.step(teacher, student, PRIOR)
    torch.testing.assert_close(result["critic_loss"], risk.value)
    torch.testing.assert_close(result["critic_auc"], critic_auc(scores[:16], scores[16:]))
    assert result["clamped_share"] == float(risk.is_clamped)


def test_the_critics_step_may_come_between_the_students_forward_and_backward_pass() -> None:
    teacher, student = toy_batch()
    found = []
    for steps_between in (False, True):
        torch.manual_seed(0)
        training = CriticTraining(FeatureCritic(D), "clamp")
        features = student.clone().requires_grad_()
        loss = student_critic_loss(training.critic(features))
        if steps_between:
            training.step(teacher, features, PRIOR)
        loss.backward()
        found.append(features.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


class NoReading(TorchDispatchMode):
    """Fails where the host reads a value, for which it would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
def test_the_host_reads_no_value_in_a_step_nor_in_the_students_loss(mode: CriticMode) -> None:
    training = CriticTraining(FeatureCritic(D), mode)
    teacher, student = toy_batch()
    with NoReading():  # type: ignore[no-untyped-call]
        training.step(teacher, student, PRIOR)
        student_critic_loss(training.critic(student.requires_grad_())).backward()
    with pytest.raises(AssertionError), NoReading():  # type: ignore[no-untyped-call]
        bool(teacher.sum() > 0)


def test_a_failing_step_leaves_the_critic_frozen() -> None:
    training = CriticTraining(FeatureCritic(D), "clamp")
    with pytest.raises(ValueError, match="class_prior"):
        training.step(*toy_batch(), 1.5)
    assert not training.critic.training
    assert not any(parameter.requires_grad for parameter in training.critic.parameters())


def test_autocast_changes_no_score() -> None:
    critic, adapter = FeatureCritic(D).eval(), FeatureAdapter([4], [D])
    vectors = torch.randn(5, 4)
    expected = critic(critic_features([vectors], adapter))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = critic(critic_features([vectors], adapter))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# --- the student's objective

WEIGHTS: dict[str, Any] = {
    "temperature": 4.0,
    "alpha": 0.9,
    "attention_weight": 1000.0,
    "critic_weight": 0.1,
}


def student_batch(
    seed: int = 0,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, Tensor]:
    """Logits and maps of student and teacher, scores and labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student_maps, teacher_maps = [draw(6, 3, 4, 4)], [draw(6, 5, 2, 2)]
    return (
        2 * draw(6, 5),
        2 * draw(6, 5),
        student_maps,
        teacher_maps,
        draw(6),
        torch.tensor([0, 1, 2, 3, 4, 0]),
    )


def slow_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student, teacher, strict=True):
        p, q = torch.exp(t / temperature), torch.exp(s / temperature)
        p, q = p / p.sum(), q / q.sum()
        total = total + sum(p_k * torch.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def slow_label_loss(student: Tensor, labels: Tensor) -> Tensor:
    losses = [
        -torch.log(torch.exp(s)[k] / torch.exp(s).sum())
        for s, k in zip(student, labels, strict=True)
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("has_critic", [True, False])
def test_the_objective_is_the_weighted_sum_of_its_terms_with_its_gradient(
    has_labels: bool, has_critic: bool
) -> None:
    student, teacher, student_maps, teacher_maps, student_scores, labels = student_batch()
    inputs = [tensor.requires_grad_() for tensor in (student, student_maps[0], student_scores)]
    result = critic_distillation(
        student,
        teacher,
        student_maps,
        teacher_maps,
        student_scores if has_critic else None,
        labels if has_labels else None,
        **WEIGHTS,
    )
    terms = {
        "kl_loss": (0.9 if has_labels else 1.0, slow_kl(student, teacher, 4.0)),
        "attention_loss": (1000.0, attention_transfer_loss(student_maps, teacher_maps)),
    }
    if has_critic:
        terms["student_critic_loss"] = (
            0.1,
            torch.stack([torch.log(1 + torch.exp(-c)) for c in student_scores]).mean(),
        )
    if has_labels:
        terms["label_loss"] = (0.1, slow_label_loss(student, labels))
    expected = torch.stack([weight * term for weight, term in terms.values()]).sum()
    assert set(result) == {"loss", *terms}
    for name, (_, term) in terms.items():
        torch.testing.assert_close(result[name], term.detach())
    torch.testing.assert_close(result["loss"], expected)
    found, wanted = (
        torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        for loss in (result["loss"], expected)
    )
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradcheck_of_the_objective() -> None:
    student, teacher, student_maps, teacher_maps, student_scores, labels = student_batch(1)
    assert torch.autograd.gradcheck(
        lambda z, a, c: critic_distillation(z, teacher, [a], teacher_maps, c, labels, **WEIGHTS)[
            "loss"
        ],
        (
            student.requires_grad_(),
            student_maps[0].requires_grad_(),
            student_scores.requires_grad_(),
        ),
    )


def test_a_student_that_is_its_teacher_has_nothing_left_but_the_critic() -> None:
    student, _, student_maps, _, student_scores, _ = student_batch()
    result = critic_distillation(
        student, student + 3.0, student_maps, student_maps, student_scores, **WEIGHTS
    )
    assert result["kl_loss"].item() == pytest.approx(0.0, abs=1e-12)
    assert result["attention_loss"] == 0
    assert result["loss"].item() == pytest.approx(0.1 * result["student_critic_loss"].item())


def test_only_the_loss_is_differentiable_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, student_maps, teacher_maps, student_scores, labels = student_batch()
    student, teacher, student_scores = (
        t.bfloat16().requires_grad_() for t in (student, teacher, student_scores)
    )
    teacher_maps = [tensor.float().requires_grad_() for tensor in teacher_maps]
    student_maps = [tensor.bfloat16() for tensor in student_maps]
    result = critic_distillation(
        student, teacher, student_maps, teacher_maps, student_scores, labels, **WEIGHTS
    )
    assert all(value.shape == () and value.dtype == torch.float32 for value in result.values())
    assert [name for name, value in result.items() if value.requires_grad] == ["loss"]
    result["loss"].backward()
    assert student.grad is not None
    assert student_scores.grad is not None
    assert teacher.grad is teacher_maps[0].grad is None


def test_the_host_never_reads_a_tensor_of_the_objective() -> None:
    student, teacher, student_maps, teacher_maps, student_scores, labels = student_batch()
    result = critic_distillation(
        student.to("meta"),
        teacher.to("meta"),
        [tensor.to("meta") for tensor in student_maps],
        [tensor.to("meta") for tensor in teacher_maps],
        student_scores.to("meta"),
        labels.to("meta"),
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
    student, teacher, student_maps, teacher_maps, *_ = student_batch()
    with pytest.raises(ValueError, match=message):
        critic_distillation(student, teacher, student_maps, teacher_maps, **{**WEIGHTS, **wrong})


# --- schedules and what is watched


def test_the_prior_goes_from_start_to_end_on_a_line() -> None:
    assert [class_prior_at(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(
        [0.3, 0.45, 0.6]
    )
    assert class_prior_at(0.25, start=0.8, end=0.4) == pytest.approx(0.7)


def test_the_ramp_rises_on_a_line_and_stays_at_one() -> None:
    assert [ramp(n, 4) for n in (0, 1, 3, 4, 100)] == [0.0, 0.25, 0.75, 1.0, 1.0]
    assert ramp(0, 0) == 1.0


def test_schedules_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 1.5"):
        class_prior_at(1.5)
    with pytest.raises(ValueError, match="strictly between 0 and 1, got 0.3 and 1.0"):
        class_prior_at(0.5, end=1.0)
    with pytest.raises(ValueError, match="at least 0, got -1 and 4"):
        ramp(-1, 4)


@settings(deadline=None, max_examples=60)
@given(
    teacher=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    student=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
)
def test_accuracy_and_auc_equal_the_counts(teacher: list[int], student: list[int]) -> None:
    accuracy = (
        sum(t > 0 for t in teacher) / len(teacher) + sum(s <= 0 for s in student) / len(student)
    ) / 2
    pairs = [(t > s) + 0.5 * (t == s) for t in teacher for s in student]
    teacher_scores, student_scores = torch.tensor(teacher).float(), torch.tensor(student).float()
    assert critic_accuracy(teacher_scores, student_scores).item() == pytest.approx(accuracy)
    assert critic_auc(teacher_scores, student_scores).item() == pytest.approx(
        sum(pairs) / len(pairs), abs=1e-6
    )
    swapped = critic_auc(student_scores, teacher_scores)
    assert critic_auc(teacher_scores, student_scores) + swapped == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("auc", "clamped_share", "reason"),
    [
        (0.8, 0.3, None),
        (0.51, 0.0, "tells nothing: it ranks teacher above student features in 51.0% of the pairs"),
        (0.3, 0.0, "cannot keep up: it ranks teacher above student features in 30.0% of the pairs"),
        (0.999, 0.2, "always wins: .* in 99.9%"),
        (0.999, 1.0, "below zero in 100.0% of its last steps: the class prior is higher"),
    ],
)
def test_a_collapse_is_named_by_the_last_quarter_alone(
    auc: float, clamped_share: float, reason: str | None
) -> None:
    healthy = np.full(12, 0.75)
    found = critic_collapse(np.append(healthy, [auc] * 4), np.append(healthy, [clamped_share] * 4))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found)
    assert (
        critic_collapse(
            np.append([auc] * 12, healthy[:4]), np.append([clamped_share] * 12, healthy[:4])
        )
        is None
    )


def test_histories_without_records_or_of_two_lengths_are_refused() -> None:
    for auc, clamped_share in (([], []), ([0.5], [0.0, 0.0])):
        with pytest.raises(ValueError, match=r"must be \(n,\) with n > 0"):
            critic_collapse(np.array(auc), np.array(clamped_share))


@pytest.mark.parametrize(
    ("mode", "shift", "reason"),
    [("clamp", 0.1, None), ("clamp", 0.0, "tells nothing"), ("gan", 1.0, "always wins")],
)
def test_training_histories_tell_a_healthy_critic_from_the_collapsed_ones(
    mode: CriticMode, shift: float, reason: str | None
) -> None:
    _, late = trained(mode, shift=shift, share=0.0, class_prior=0.3)
    found = critic_collapse(np.array([late["critic_auc"]]), np.array([late["clamped_share"]]))
    assert (found is None) if reason is None else (found is not None and reason in found)
