"""Positive and unlabeled samples from two Gaussians, and a linear score, for PU tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.learning.generators import seeded_generator


class LinearScore(nn.Module):
    """A linear score of (N, F) features."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N,) scores."""
        scores: Tensor = self.linear(features).squeeze(1)
        return scores


def samples(
    class_prior: float,
    n_positive: int,
    n_unlabeled: int,
    n_features: int,
    *,
    distance: float = 3.0,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return positives, unlabeled, and which of the unlabeled are positive.

    Args:
        class_prior: share of positives among the unlabeled.
        n_positive: number of positives.
        n_unlabeled: number of unlabeled samples.
        n_features: dimensions, of which only the first separates the two Gaussians.
        distance: distance between their centers; their standard deviation is 1.
        seed: seed of the samples.
    """
    generator = seeded_generator(seed)
    draws = torch.rand(n_unlabeled, generator=generator)
    is_positive = draws < class_prior
    center = torch.zeros(n_features)
    center[0] = distance

    # Negatives are around the origin, positives around the center.
    positive = torch.randn(n_positive, n_features, generator=generator) + center
    noise = torch.randn(n_unlabeled, n_features, generator=generator)
    unlabeled = noise + center * is_positive.unsqueeze(1)
    return positive, unlabeled, is_positive
