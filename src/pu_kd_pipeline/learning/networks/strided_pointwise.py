"""A way around a fault of oneDNN that writes beyond a tensor.

On CPUs with AVX2 and without AVX-512, the gradient of a 1x1 convolution with stride 2 and fewer
than 8 input channels in channels-last order damages memory (torch 2.13): the process crashes, or
computes with what was overwritten. The same convolution of tensors in contiguous order is right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_VECTOR = 8  # float32 values in an AVX2 register


def faulty_convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of a network that have the fault in channels-last order."""
    found = []
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        is_strided = max(layer.stride) > 1
        is_pointwise = max(layer.kernel_size) == 1
        if is_strided and is_pointwise and layer.in_channels < _VECTOR:
            found.append(layer)
    return found


def guard(network: nn.Module) -> nn.Module:
    """Let the faulty convolutions read contiguous tensors on a CPU; return the network."""
    for layer in faulty_convolutions(network):
        layer.register_forward_pre_hook(make_contiguous, with_kwargs=True)
    return network


def make_contiguous(
    _layer: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of a layer with the images in contiguous order, on a CPU.

    Args:
        inputs: images, as in `layer(images)`; or nothing.
        named_inputs: as in `layer(input=images)`.
    """
    positional = tuple(_contiguous_on_cpu(value) for value in inputs)
    named = {name: _contiguous_on_cpu(value) for name, value in named_inputs.items()}
    return positional, named


def _contiguous_on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return value.contiguous()
    return value


def restore_contiguous_weights(network: nn.Module) -> None:
    """Put the weights of the faulty convolutions into contiguous order again."""
    for layer in faulty_convolutions(network):
        # `contiguous` would do nothing: 1x1 kernels are in both orders, and strides decide.
        layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
