"""Random generators for tests, whose draws repeat."""

from __future__ import annotations

import torch


def seeded_generator(seed: int = 0) -> torch.Generator:
    """Return a generator on the CPU whose draws depend on the seed alone."""
    return torch.Generator().manual_seed(seed)
