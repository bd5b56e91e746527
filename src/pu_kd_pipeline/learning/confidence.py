"""How sure a classifier is of its class, as a number that tells apart the surest images, too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ClassConfidence(NamedTuple):
    """The most likely class of each of N images."""

    classes: Tensor
    """(N,) int32, the argmax of the logits."""
    log_odds: Tensor
    """(N,) float64, log p - log(1 - p) of the probability p of that class; finite."""
    confidence: Tensor
    """(N,) float32, p in (0, 1]. It rises with the log odds, and is exactly 1 above about 17."""


def class_confidence(logits: Tensor) -> ClassConfidence:
    """Return the most likely classes and how sure a classifier is of them.

    The log odds of the largest logit z_c are z_c - log(sum over the other classes of exp z_k).
    They order images as p = max softmax(z) does, but p rounds to 1 and the log odds do not: they
    also order images whose probability rounds to 1 in float32.

    Args:
        logits: (N, K) any float dtype on the CPU, K >= 2, up to a constant in each row: log
            probabilities will do.
    """
    logits = logits.double()
    largest, classes = logits.max(dim=1, keepdim=True)
    other_logits = logits.scatter(1, classes, -torch.inf)
    log_odds = largest.squeeze(1) - other_logits.logsumexp(dim=1)
    # A network may exclude all other classes with logits of minus infinity. NaN stays NaN.
    log_odds = log_odds.clamp(max=torch.finfo(torch.float64).max)
    # From the log odds, so that rounding does not reverse the order of two images.
    confidence = log_odds.sigmoid()
    return ClassConfidence(classes.squeeze(1).int(), log_odds, confidence.float())
