"""Checkpoints of a small network, and what is read from them."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.weights import load_weights

State = dict[str, Tensor]


def new_network() -> nn.Module:
    return build_network("digits_cnn", 3, 1, {"width": 2})


def shifted(state: State, by: float) -> State:
    """Return other weights of the same shapes."""
    changed = {}
    for name, value in state.items():
        changed[name] = value.clone()
        if value.is_floating_point():
            changed[name] += by
    return changed


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def without_counters(state: State) -> State:
    return {name: value for name, value in state.items() if "num_batches" not in name}


STATE: State = shifted(new_network().state_dict(), 0.25)
OTHER = shifted(STATE, 1)


def loaded(content: Any, folder: Path, *, old_format: bool = False) -> State:
    """Return the weights of a network after it has read what torch.save wrote."""
    file = folder / "w.pt"
    torch.save(content, file, _use_new_zipfile_serialization=not old_format)
    network = new_network()
    load_weights(network, file)
    return dict(network.state_dict())


def error_of(content: Any, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        loaded(content, folder)
    return str(error.value)


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, check_dtype=False)


class Mode(enum.Enum):
    """Is unpickled by a call."""

    TRAIN = 1
