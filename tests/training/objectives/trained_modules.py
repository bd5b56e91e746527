"""Recording the modules that objectives create."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from pu_kd_pipeline.training.objectives import feature_matching, latent, noisy


def record_created(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Return a list that fills with the modules created by that name and their initial values."""
    modules = (feature_matching, latent, noisy)
    [module_of_name] = [module for module in modules if hasattr(module, name)]
    create: Callable[..., nn.Module] = getattr(module_of_name, name)
    created = []

    def recording(*args: Any, **options: Any) -> nn.Module:
        module = create(*args, **options)
        start = {}
        for key, value in module.named_parameters():
            # Cloned, because training changes the parameters in place.
            start[key] = value.detach().clone()
        created.append((module, start))
        return module

    monkeypatch.setattr(module_of_name, name, recording)
    return created
