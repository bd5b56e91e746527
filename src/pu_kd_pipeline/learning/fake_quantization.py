"""Training with the rounding of int8 in the forward pass.

The weights and inputs of layers are rounded as static quantization rounds them, and the gradient
passes the rounding unchanged (Jacob et al. 2018, arXiv:1712.05877; Bengio et al. 2013,
arXiv:1308.3432). So the network moves to weights that lose little by rounding. ONNX Runtime also
rounds the outputs of these layers, which is not simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_ROUNDED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_WEIGHT_LEVELS = 64  # on each side of 0: seven bits
_ACTIVATION_LEVELS = 255  # above the lowest value: eight bits

Range = tuple[float, float]
"""Lowest and highest value of a layer's inputs; 0 lies between them."""


class _RoundWeight(nn.Module):
    """Rounds a weight to s_c {-64, ..., 64}, s_c = max |w_c| / 64 for each output channel c."""

    def forward(self, weight: Tensor) -> Tensor:
        """Map a (C_out, ...) weight to the same shape."""
        largest = weight.detach().abs().flatten(start_dim=1).amax(dim=1)
        # A channel of zeros has no scale of its own.
        scales = torch.where(largest > 0, largest / _WEIGHT_LEVELS, torch.ones_like(largest))
        zeros = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(
            weight, scales, zeros, 0, -_WEIGHT_LEVELS, _WEIGHT_LEVELS
        )


def round_activations(values: Tensor, lowest: float, highest: float) -> Tensor:
    """Return float values rounded to 256 levels between two numbers, and clipped to these.

    Args:
        values: of any shape.
        lowest: at most 0.
        highest: at least 0. If both are 0, or too near to it for float32, values are returned
            unchanged.
    """
    scale = (highest - lowest) / _ACTIVATION_LEVELS
    if scale < torch.finfo(torch.float32).tiny:
        return values
    # 0 has a level of its own, as padding needs.
    zero = round(-lowest / scale)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, _ACTIVATION_LEVELS)


def input_ranges(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Range]:
    """Return the name of each convolution and linear layer -> the range of its inputs.

    Args:
        network: is called without gradient, in the mode that it is in.
        batches: its inputs.
    """
    found: dict[str, Range] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].detach()
        lowest, highest = found.get(name, (0.0, 0.0))
        found[name] = (
            min(lowest, values.min().item()),
            max(highest, values.max().item()),
        )

    with ExitStack() as stack, torch.no_grad():
        for name, layer in _rounded_layers(network):
            stack.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
        for batch in batches:
            network(batch)
    return found


@contextmanager
def with_rounding(network: nn.Module, ranges: Mapping[str, Range]) -> Iterator[None]:
    """Round weights and inputs of a network's convolutions and linear layers within a block.

    The parameters stay in full precision, and are what an optimizer changes. Make the optimizer
    inside of the block, where they are known as `parametrizations.weight.original`.

    Args:
        network: the network. A weight that is computed from others, as with weight normalization,
            is not rounded.
        ranges: result of `input_ranges`; a layer that it does not name is left as it is.
    """
    with ExitStack() as stack:
        for name, layer in _rounded_layers(network):
            if name not in ranges:
                continue
            round_input = partial(_round_input, *ranges[name])
            stack.callback(layer.register_forward_pre_hook(round_input).remove)
            if not isinstance(layer._parameters.get("weight"), nn.Parameter):
                continue
            parametrize.register_parametrization(layer, "weight", _RoundWeight())
            stack.callback(
                parametrize.remove_parametrizations, layer, "weight", leave_parametrized=False
            )
        yield


def _round_input(
    lowest: float, highest: float, _: nn.Module, inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    return (round_activations(inputs[0], lowest, highest), *inputs[1:])


def _rounded_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    # A list: parametrizing replaces modules while they are listed.
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, _ROUNDED)]
