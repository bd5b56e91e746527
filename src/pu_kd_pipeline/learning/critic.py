"""A PU critic between the features of teacher and student (Jiang, Tang & Yu 2023, doi 10.1007/s11063-022-11038-7).

A critic learns to tell the teacher's features from the student's, and the student to pass for its teacher. A plain GAN
calls all that is the student's negative; here it is *unlabeled*, since some is already as good as the teacher's.

This is a reconstruction: of the paper only the abstract is public. The risk is that of PU GAN (Guo et al. 2020,
arXiv:2002.01136, and its released code) or of nnPU (Kiryo et al. 2017, arXiv:1703.00593), the critic a small network
with spectral norm (Miyato et al. 2018, arXiv:1802.05957); features, sizes and weights are our choices. The training
loop, the taps and the optimiser of the student are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from pu_kd_pipeline.learning.attention_transfer import attention_transfer_loss
from pu_kd_pipeline.learning.distillation import soft_cross_entropy
from pu_kd_pipeline.learning.features import global_average
from pu_kd_pipeline.learning.training import make_optimizer

CriticMode = Literal["clamp", "ascent", "gan"]

HIDDEN_WIDTHS = (256, 128)
# The features have norm sqrt(taps): times sqrt(d / taps), about 20, their entries are of size one, like the pixels that
# spectral norm was made for. With 1 the scores of separable features stay within half a unit, where softplus is all but
# a straight line: PU and GAN critic then differ by little more than a constant, and no step is ever clamped. Of points
# on a sphere that follow the critic's gradient, those that were good from the start drift by .18 (GAN) and .17 (PU)
# with 1, by .14 and .14 with 5, and by .16 and .08 with 20; the others come equally near in either mode.
LIPSCHITZ = 20.0
# DCGAN's Adam (Radford et al. 2016), which PU GAN keeps
LEARNING_RATE = 2e-4
MOMENTUM = 0.5

# Over a quarter of the training the AUC of a batch of 128 and 128, of standard error .04, is known to better than .01:
# .55 is not chance, but features a fifth of a standard deviation apart; .99 is more than three apart.
BLIND_AUC = 0.55
WINNING_AUC = 0.99
CLAMPED_SHARE = 0.95  # fewer than one step in twenty has lowered the whole risk


class CriticRisk(NamedTuple):
    """Risk of the critic on a batch, each a () tensor of float32 (float64 for float64 scores), `is_clamped` bool."""

    objective: Tensor
    """What to backpropagate."""
    value: Tensor
    """What to report: pi E_t sp(-C) + max(0, R_-), or the GAN's loss. Detached."""
    is_clamped: Tensor
    """Whether R_- is below zero and left out (clamp) or climbed (ascent); never true for the GAN."""


class FeatureAdapter(nn.Module):
    """Brings the student's pooled features to the teacher's widths: identity where they agree, else a 1x1 convolution.

    A 1x1 convolution and the average over the map commute, so it acts on the pooled vectors, as a linear layer: the
    same function for 1/(H*W) of the cost. It is trained with the student, by the student's loss, and could learn to
    deceive the critic on its own: rather take a student whose taps have the teacher's widths.

    Args:
        student_widths: channels of the student's taps.
        teacher_widths: channels of the teacher's, as many.

    Raises:
        ValueError: the numbers of taps differ or are zero.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int]) -> None:
        super().__init__()
        if not student_widths or len(student_widths) != len(teacher_widths):
            raise ValueError(
                "student and teacher need equally many taps, at least one, "
                f"got widths {list(student_widths)} and {list(teacher_widths)}"
            )
        self.layers = nn.ModuleList(
            nn.Identity() if mine == theirs else nn.Linear(mine, theirs)
            for mine, theirs in zip(student_widths, teacher_widths, strict=True)
        )

    def forward(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Map one (N, C) float32 vector for each tap to one (N, D), outside of autocast."""
        if len(pooled) != len(self.layers):
            raise ValueError(f"the adapter was made for {len(self.layers)} taps, got {len(pooled)}")
        with torch.autocast(pooled[0].device.type, enabled=False):
            return [layer(vector) for layer, vector in zip(self.layers, pooled, strict=True)]


def critic_features(maps: Sequence[Tensor], adapter: FeatureAdapter | None = None) -> Tensor:
    """Return phi, the concatenation over the taps of GAP(A) / ||GAP(A)||_2.

    Each tap counts the same, and that one network's activations are larger tells the critic nothing.

    Args:
        maps: one for each tap, as `features.global_average` takes them, any float dtype.
        adapter: for the student's maps, where its widths are not the teacher's.

    Returns:
        (N, D) float32 (float64 for float64 maps), of norm sqrt(number of taps).

    Raises:
        ValueError: there are no taps, or one has another shape.
    """
    if not maps:
        raise ValueError("features of the critic need at least one tap")
    pooled = [global_average(feature_map, str(tap)) for tap, feature_map in enumerate(maps)]
    vectors = pooled if adapter is None else adapter(pooled)
    return torch.cat([functional.normalize(vector, dim=1) for vector in vectors], dim=1)


class FeatureCritic(nn.Module):
    """C: an MLP d-256-128-1 with LeakyReLU .2 and spectral norm; larger scores mean more like the teacher.

    Every linear layer has spectral norm one and every LeakyReLU slopes of at most one, so that
    |C(a) - C(b)| <= lipschitz ||a - b||, up to the error of the power iteration.

    Args:
        d: width of the features.
        lipschitz: factor on the features, > 0; see `LIPSCHITZ`.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, d: int, lipschitz: float = LIPSCHITZ) -> None:
        super().__init__()
        if d < 1 or not lipschitz > 0.0:
            raise ValueError(f"d must be at least 1 and lipschitz positive, got d={d!r}, lipschitz={lipschitz!r}")
        self.d, self.lipschitz = d, lipschitz
        first, second = HIDDEN_WIDTHS
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(d, first)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(first, second)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(second, 1)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, d) float32 features to (N,) float32 logits, outside of autocast."""
        if features.ndim != 2 or features.shape[1] != self.d:
            raise ValueError(f"the critic reads features (N, {self.d}), got {tuple(features.shape)}")
        with torch.autocast(features.device.type, enabled=False):
            scores: Tensor = self.layers(self.lipschitz * features)
        return scores.squeeze(1)


def pu_critic_risk(
    teacher_scores: Tensor, student_scores: Tensor, class_prior: float, mode: CriticMode, *, gamma: float = 1.0
) -> CriticRisk:
    """Return the critic's risk under the logistic loss sp(-yC): teacher features positive, student features unlabeled.

    R_p+ = pi E_t sp(-C),  R_- = E_s sp(C) - pi E_t sp(C)

    - `clamp`: R_p+ + max(0, R_-) (Guo et al. 2020); below zero the first term alone has a gradient.
    - `ascent`: nnPU (Kiryo et al. 2017, Algorithm 1, beta = 0); below zero the step follows -gamma * grad R_- alone.
    - `gan`: the control, E_t sp(-C) + E_s sp(C) (Goodfellow et al. 2014), with all of the student's negative.

    sp(C) - sp(-C) = C, so R_p+ + R_- = E_s sp(C) - pi E_t C has no lower bound and needs one of the branches, which
    are a `torch.where`: the host never waits. `learning.risk` has the same for the sigmoid loss, positives first too.

    The branch holds E_s sp(C) at pi E_t sp(C) or more, that is, it insists that a share pi of the student's features
    passes. Where fewer do, the prior is too high, and the critic also spares features that it can tell apart.

    Args:
        teacher_scores: (N,) any float dtype; N > 0.
        student_scores: (M,) any float dtype; M > 0.
        class_prior: pi, the share of student features that pass for the teacher's, in (0, 1); `gan` does not read it.
        mode: "clamp", "ascent" or "gan".
        gamma: size of the ascent step, in [0, 1].

    Raises:
        ValueError: a batch is empty, the mode is unknown or a number is outside its range.
    """
    if mode not in get_args(CriticMode):
        raise ValueError(f"mode must be 'clamp', 'ascent' or 'gan', got {mode!r}")
    if teacher_scores.numel() == 0 or student_scores.numel() == 0:
        raise ValueError(
            f"the critic needs scores of both networks, got {teacher_scores.numel()} of the teacher and "
            f"{student_scores.numel()} of the student"
        )
    teacher_scores, student_scores = _widened(teacher_scores), _widened(student_scores)
    positive_loss = functional.softplus(-teacher_scores).mean()
    negative_loss = functional.softplus(student_scores).mean()
    if mode == "gan":
        risk = positive_loss + negative_loss
        return CriticRisk(risk, risk.detach(), torch.zeros_like(risk, dtype=torch.bool))
    if not 0.0 < class_prior < 1.0:
        raise ValueError(f"class_prior must lie strictly between 0 and 1, got {class_prior!r}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
    positive_risk = class_prior * positive_loss
    negative_risk = negative_loss - class_prior * functional.softplus(teacher_scores).mean()
    is_clamped = negative_risk.detach() < 0.0
    return CriticRisk(
        objective=torch.where(
            is_clamped, positive_risk if mode == "clamp" else -gamma * negative_risk, positive_risk + negative_risk
        ),
        value=(positive_risk + negative_risk.clamp(min=0.0)).detach(),
        is_clamped=is_clamped,
    )


def student_critic_loss(student_scores: Tensor) -> Tensor:
    """Return E_s sp(-C(phi_s)), () float32: how far the student is from passing for its teacher.

    The form that does not saturate (Goodfellow et al. 2014): a sample pulls the more the surer the critic is of it.

    Args:
        student_scores: (N,) any float dtype, from a critic whose parameters are frozen; see `CriticTraining`.
    """
    return functional.softplus(-_widened(student_scores)).mean()


def critic_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    student_scores: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    temperature: float,
    alpha: float,
    attention_weight: float,
    critic_weight: float,
) -> dict[str, Tensor]:
    """Return (1 - alpha) CE + alpha T^2 KL + beta AT + lambda E_s sp(-C(phi_s)) and its terms.

    The controls are weights of zero: KD has neither beta nor lambda, AT has alpha = 0 and no lambda, KD+AT no lambda,
    KD+AT+GAN a critic trained in the mode `gan`.

    Args:
        student_logits: (N, K) any float dtype.
        teacher_logits: (N, K) any float dtype; no gradient flows to it.
        student_maps: see `attention_transfer_loss`.
        teacher_maps: see `attention_transfer_loss`.
        student_scores: (N,) of the frozen critic; None: there is no critic, and its term is left out.
        labels: (N,) int64; None: there are soft targets alone, CE is left out and alpha is 1.
        temperature: T > 0; here 4.
        alpha: in [0, 1]; here .9.
        attention_weight: beta >= 0; here 1000.
        critic_weight: lambda >= 0; here .1, see `ramp`.

    Returns:
        "loss", () and differentiable, and unweighted and detached "kl_loss" (T^2 KL), "attention_loss", with a critic
        "student_critic_loss" and with labels "label_loss".

    Raises:
        ValueError: shapes that do not fit, or a number outside its range.
    """
    if not 0.0 <= alpha <= 1.0 or not attention_weight >= 0.0 or not critic_weight >= 0.0:
        raise ValueError(
            "alpha must be in [0, 1] and the weights at least 0, got "
            f"alpha={alpha!r}, attention_weight={attention_weight!r}, critic_weight={critic_weight!r}"
        )
    teacher_logits = teacher_logits.detach()
    entropy = soft_cross_entropy(teacher_logits, teacher_logits, temperature)
    divergence = (soft_cross_entropy(student_logits, teacher_logits, temperature) - entropy).mean()
    weighted = {
        "kl_loss": (alpha if labels is not None else 1.0, temperature**2 * divergence),
        "attention_loss": (attention_weight, attention_transfer_loss(student_maps, teacher_maps)),
    }
    if student_scores is not None:
        weighted["student_critic_loss"] = (critic_weight, student_critic_loss(student_scores))
    if labels is not None:
        weighted["label_loss"] = (1.0 - alpha, functional.cross_entropy(_widened(student_logits), labels))
    loss = torch.stack([weight * term for weight, term in weighted.values()]).sum()
    return {"loss": loss, **{name: term.detach() for name, (_, term) in weighted.items()}}


def _widened(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def class_prior_at(progress: float, start: float = 0.3, end: float = 0.6) -> float:
    """Return pi after a share `progress` in [0, 1] of the training: the better the student, the more of it passes.

    On the line from start to end; PU GAN's released code goes from .3 to .6 in steps of .1.

    Raises:
        ValueError: progress is outside [0, 1], or start or end outside (0, 1).
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must be in [0, 1], got {progress!r}")
    if not (0.0 < start < 1.0 and 0.0 < end < 1.0):
        raise ValueError(f"start and end must lie strictly between 0 and 1, got {start!r} and {end!r}")
    return start + (end - start) * progress


def ramp(n_updates: int, n_ramp_updates: int) -> float:
    """Return the factor in [0, 1] on lambda after n_updates: linear, and 1 from n_ramp_updates on.

    Before the critic knows anything its pull is noise.

    Raises:
        ValueError: a number is negative.
    """
    if n_updates < 0 or n_ramp_updates < 0:
        raise ValueError(f"numbers of updates must be at least 0, got {n_updates!r} and {n_ramp_updates!r}")
    return 1.0 if n_updates >= n_ramp_updates else n_updates / n_ramp_updates


class CriticTraining:
    """A critic and its Adam, for one step of the critic in each step of the student.

    Outside of `step` the critic is frozen and in eval mode: the student's loss goes through `training.critic(features)`
    to the features and never reaches the critic's parameters, with no switch that the caller could forget. Spectral
    norm moves its power iteration in train mode alone, so by one iteration a step, however often the student asks. The
    frozen critic computes with a copy, its normalised weights, so `step` may also come between the student's forward
    and backward pass.

    Args:
        critic: on its device; its parameters are trained.
        mode: see `pu_critic_risk`.
        learning_rate: of Adam with betas .5 and .999.
        gamma: see `pu_critic_risk`.

    Attributes:
        critic: see above.
        n_steps: steps taken.
    """

    def __init__(
        self, critic: nn.Module, mode: CriticMode, *, learning_rate: float = LEARNING_RATE, gamma: float = 1.0
    ) -> None:
        self.critic, self._mode, self._gamma = critic, mode, gamma
        self.n_steps = 0
        self._optimizer = make_optimizer(
            critic.requires_grad_(True),
            algorithm="adam",
            learning_rate=learning_rate,
            momentum=MOMENTUM,
            weight_decay=0.0,
        )
        self._freeze()

    def step(self, teacher_features: Tensor, student_features: Tensor, class_prior: float) -> dict[str, Tensor]:
        """Take one step on the risk of a batch and return what it was before the step.

        Both go through the critic in one pass. No gradient flows to the features.

        Args:
            teacher_features: (N, d) from `critic_features`; N > 0.
            student_features: (M, d); M > 0.
            class_prior: see `pu_critic_risk`.

        Returns:
            "critic_loss", "critic_accuracy", "critic_auc" and "clamped_share", detached () float32.

        Raises:
            ValueError: shapes that do not fit, or as `pu_critic_risk`.
        """
        if teacher_features.shape[1:] != student_features.shape[1:]:
            raise ValueError(
                "student and teacher features must have one width, got "
                f"{tuple(student_features.shape)} and {tuple(teacher_features.shape)}"
            )
        self.critic.train().requires_grad_(True)
        try:
            scores = self.critic(torch.cat([teacher_features, student_features]).detach())
            teacher_scores, student_scores = scores[: len(teacher_features)], scores[len(teacher_features) :]
            risk = pu_critic_risk(teacher_scores, student_scores, class_prior, self._mode, gamma=self._gamma)
            risk.objective.backward()
            self._optimizer.step()
        finally:
            self._freeze()
        self.n_steps += 1
        return {
            "critic_loss": risk.value,
            "critic_accuracy": critic_accuracy(teacher_scores, student_scores),
            "critic_auc": critic_auc(teacher_scores, student_scores),
            "clamped_share": risk.is_clamped.float(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the critic, its Adam, and the number of steps taken."""
        parts = {"critic": self.critic.state_dict(), "optimizer": self._optimizer.state_dict()}
        return {**parts, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring all of it where it was."""
        self.critic.load_state_dict(state["critic"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.n_steps = state["n_steps"]

    def _freeze(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self.critic.eval().requires_grad_(False)


def critic_accuracy(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """Return the balanced accuracy of telling teacher (C > 0) from student features, () float32 in [0, 1].

    0 is the Bayes rule of a GAN's critic. A PU critic gives features that nobody can tell apart the score logit(pi);
    one that stays on that side of 0 has an accuracy of 1/2, however well it ranks. Compare modes by `critic_auc`.

    Args:
        teacher_scores: (N,) any float dtype; N > 0.
        student_scores: (M,) any float dtype; M > 0.
    """
    return ((teacher_scores > 0).float().mean() + (student_scores <= 0).float().mean()) / 2


def critic_auc(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """Return how often a feature of the teacher scores higher than one of the student, () float32 in [0, 1].

    P(C_t > C_s) + P(C_t = C_s) / 2 over all pairs: 1/2 says that the critic tells nothing, whatever its threshold.
    Arguments as for `critic_accuracy`.
    """
    teacher_scores = teacher_scores[:, None]
    return (teacher_scores > student_scores).float().mean() + (teacher_scores == student_scores).float().mean() / 2


def critic_collapse(auc: npt.NDArray[Any], clamped_share: npt.NDArray[Any]) -> str | None:
    """Return why the critic was of no use in the last quarter of the training, or None where it was of use.

    Args:
        auc: (n,) critic_auc of the records of a history, in order; n > 0.
        clamped_share: (n,) clamped_share of the same.

    Raises:
        ValueError: the arrays are empty or differ in shape.
    """
    auc, clamped_share = np.asarray(auc, dtype=np.float64), np.asarray(clamped_share, dtype=np.float64)
    if auc.ndim != 1 or auc.shape != clamped_share.shape or not auc.size:
        raise ValueError(f"auc and clamped_share must be (n,) with n > 0, got {auc.shape} and {clamped_share.shape}")
    n_last = math.ceil(len(auc) / 4)
    late_auc, late_share = float(auc[-n_last:].mean()), float(clamped_share[-n_last:].mean())
    if late_share > CLAMPED_SHARE:
        return (
            f"the critic's risk on student features is below zero in {late_share:.1%} of its last steps: the class "
            "prior is higher than the share of them that passes for the teacher's; lower it"
        )
    ranks = f"it ranks teacher above student features in {late_auc:.1%} of the pairs"
    if late_auc < 1.0 - BLIND_AUC:
        return f"the critic cannot keep up: {ranks}, where chance is 50%; raise its learning rate"
    if late_auc < BLIND_AUC:
        return (
            f"the critic tells nothing: {ranks}, where chance is 50%; either the student's features are the teacher's, "
            "or the critic cannot see how they differ"
        )
    if late_auc > WINNING_AUC:
        return (
            f"the critic always wins: {ranks}; the student comes nowhere near and hardly learns from it which way to go"
        )
    return None
