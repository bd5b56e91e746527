"""Risks of a binary classifier that is trained on positive and unlabeled samples only.

Holds the sigmoid loss, the unbiased (uPU) and non-negative (nnPU) risks with the gradient of the
latter, and the zero-one risk that can be monitored without negatives. Leaves out sampling of
batches, optimizers and networks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class PURisk(NamedTuple):
    """Terms of a PU risk.

    Each is a () tensor, float32 (float64 for float64 logits); `is_ascent` is bool.
    """

    objective: Tensor
    """What to backpropagate: positive_risk + negative_risk, or -gamma * negative_risk (ascent)."""
    value: Tensor
    """What to report: positive_risk + negative_risk, or positive_risk - beta (ascent). Detached."""
    positive_risk: Tensor
    """R_p+ = class_prior * mean_P loss(F, +1). Detached."""
    negative_risk: Tensor
    """R_- = mean_U loss(F, -1) - class_prior * mean_P loss(F, -1). Detached."""
    is_ascent: Tensor
    """Whether this batch takes the ascent branch; never true for uPU."""


def sigmoid_loss(logits: Tensor, label: Literal[-1, 1]) -> Tensor:
    """Return the sigmoid loss sigma(-label * logits), elementwise, in (0, 1), at least float32.

    It is symmetric, loss(F, +1) + loss(F, -1) = 1, and bounded, which convex losses are not
    (Kiryo et al. 2017).

    Args:
        logits: any shape and float dtype, larger means more like the positives.
        label: +1 for positive, -1 for negative.
    """
    # bf16 keeps three digits, too few for the difference of means that decides the branch below.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    exact_logits = logits.to(dtype)
    return torch.sigmoid(-label * exact_logits)


def pu_risk(
    positive_logits: Tensor,
    unlabeled_logits: Tensor,
    class_prior: float,
    *,
    estimator: Literal["nnpu", "upu"],
    beta: float = 0.0,
    gamma: float = 1.0,
) -> PURisk:
    """Return the PU risk of a batch under the sigmoid loss, and the objective to train on.

    R_p+ = pi mean_P sigma(-F),  R_- = mean_U sigma(F) - pi mean_P sigma(F)
    (Kiryo et al. 2017, arXiv:1703.00593)

    uPU minimizes R_p+ + R_-, which a flexible model drives below zero. nnPU (their Algorithm 1)
    does so only while R_- >= -beta; otherwise it minimizes -gamma * R_- alone, *without* the
    positive term, and so raises R_- to undo the over-fitting.

    Args:
        positive_logits: (P,) any float dtype, larger means more like the positives; P > 0.
        unlabeled_logits: (U,) from the same forward pass, so that BatchNorm cannot separate the
            two; U > 0.
        class_prior: share of positives among the unlabeled, in (0, 1).
        estimator: "nnpu" or "upu"; uPU ignores beta and gamma.
        beta: tolerated negative risk, >= 0.
        gamma: size of the ascent step, in [0, 1].

    Raises:
        ValueError: a batch is empty or a number is outside its range.
    """
    _check_class_prior(class_prior)
    if estimator not in ("nnpu", "upu"):
        raise ValueError(f"estimator must be 'nnpu' or 'upu', got {estimator!r}")
    if beta < 0.0 or not 0.0 <= gamma <= 1.0:
        raise ValueError(
            f"beta must be at least 0 and gamma in [0, 1], got beta={beta!r}, gamma={gamma!r}"
        )
    if positive_logits.numel() == 0 or unlabeled_logits.numel() == 0:
        raise ValueError(
            "a PU batch needs positive and unlabeled samples, "
            f"got {positive_logits.numel()} positive and {unlabeled_logits.numel()} unlabeled"
        )
    positive_risk = class_prior * sigmoid_loss(positive_logits, 1).mean()
    # The unlabeled are a mixture: subtracting the positives' share leaves the negatives' risk.
    unlabeled_loss = sigmoid_loss(unlabeled_logits, -1).mean()
    loss_as_negatives = sigmoid_loss(positive_logits, -1).mean()
    negative_risk = unlabeled_loss - class_prior * loss_as_negatives
    risk = positive_risk + negative_risk

    # uPU follows the whole risk even below zero, where a flexible model overfits.
    if estimator == "upu":
        return PURisk(
            objective=risk,
            value=risk.detach(),
            positive_risk=positive_risk.detach(),
            negative_risk=negative_risk.detach(),
            is_ascent=torch.zeros_like(risk, dtype=torch.bool),
        )
    is_ascent = negative_risk.detach() < -beta
    # torch.where instead of `if`: the host never waits for the device.
    return PURisk(
        objective=torch.where(is_ascent, -gamma * negative_risk, risk),
        value=torch.where(is_ascent, positive_risk - beta, risk).detach(),
        positive_risk=positive_risk.detach(),
        negative_risk=negative_risk.detach(),
        is_ascent=is_ascent,
    )


def zero_one_risk(
    false_negative_rate: float, unlabeled_positive_share: float, class_prior: float
) -> float:
    """Return the estimated error rate, 2 pi FNR + P_U(predicted positive) - pi.

    It needs no negatives, so it can choose an epoch on held-out positives and pool samples.

    Args:
        false_negative_rate: share of held-out positives that are predicted negative, in [0, 1].
        unlabeled_positive_share: share of unlabeled samples predicted positive, in [0, 1].
        class_prior: share of positives among the unlabeled, in (0, 1).

    Raises:
        ValueError: class_prior is outside (0, 1).
    """
    _check_class_prior(class_prior)
    # Not clamped: it is unbiased, hence slightly below zero now and then on a finite sample.
    return 2.0 * class_prior * false_negative_rate + unlabeled_positive_share - class_prior


def _check_class_prior(class_prior: float) -> None:
    if not 0.0 < class_prior < 1.0:
        raise ValueError(f"class_prior must lie strictly between 0 and 1, got {class_prior!r}")
