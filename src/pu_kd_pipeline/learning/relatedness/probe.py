"""One forward pass of a network that gives all indicators."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pu_kd_pipeline.learning.relatedness.indicators import (
    BATCHNORM_INDICATORS,
    LATENT_INDICATORS,
    LOGIT_INDICATORS,
    batchnorm_sums,
    latent_indicators,
    logit_indicators,
)


class _ForwardPass(NamedTuple):
    """What one forward pass gives to the indicators."""

    logits: Tensor
    latents: list[Tensor]
    """One (N, D) input per call of the last linear layer; empty where the network has none."""
    batchnorm_sums: Tensor
    """(4, N), as `batchnorm_sums` returns them, over all layers."""
    n_channels: Tensor
    """(4,) int64, as `batchnorm_sums` returns them, over all layers."""


class RelatednessProbe:
    """Computes all applicable indicators of a batch of images in one forward pass of a classifier.

    The indicators of the logits always apply. Those of the last linear layer apply where its output
    is the logits (SqueezeNet ends in a convolution). Those of BatchNorm read every call of a layer
    that has running statistics and sees one map per image (not one per token).

    Args:
        network: maps (N, C, H, W) images to (N, K) logits, in eval mode; shared, and hooked only
            during a call.
        image_shape: (C, H, W), needed to see which indicators apply.

    Attributes:
        names: the indicators that apply, in the order of `INDICATORS`.

    Raises:
        ValueError: the network is in training mode, or does not return (N, K) logits with K >= 2.
    """

    names: tuple[str, ...]

    def __init__(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.network = network
        self.image_shape = image_shape
        self._check_mode()
        self._batchnorms: list[_BatchNorm] = []
        for module in network.modules():
            # Without running statistics there is nothing to compare a batch with.
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                self._batchnorms.append(module)

        # Random instead of constant images, so that no two layers happen to give equal outputs.
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, *image_shape, generator=generator)
        parameter = next(network.parameters())
        images = images.to(parameter)  # device and dtype
        self._head = _layer_of_the_logits(network, images)
        trial = self._forward(images)

        # None of the BatchNorm indicators applies, or the first two (maps of one position), or all.
        applies = trial.n_channels > 0
        self._n_batchnorm = int(applies.sum())
        names = list(LOGIT_INDICATORS)
        if self._head is not None:
            names += LATENT_INDICATORS
        names += BATCHNORM_INDICATORS[: self._n_batchnorm]
        self.names = tuple(names)

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 normalized images to (N, len(names)) float32 indicators.

        Higher is less related.

        Raises:
            ValueError: the images differ in shape from `image_shape`, or the network is in training
                mode.
        """
        self._check_mode()
        shape = tuple(images.shape)
        if images.ndim != 4 or shape[1:] != tuple(self.image_shape):
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must be (N, {expected}), got {shape}")

        logits, latents, sums, n_channels = self._forward(images)
        parts = [logit_indicators(logits)]

        if self._head is not None:
            weight = self._head.weight.detach()
            classes = logits.argmax(dim=1)
            # The last call gave the logits, where the layer is called more than once.
            last_latents = latents[-1]
            part = latent_indicators(last_latents, weight, classes)
            parts.append(part)

        # (4, N): the mean over all channels of all layers. Where no channel counts it is nan, and
        # the indicator not among those that apply.
        counts = n_channels.unsqueeze(1)
        batchnorm_indicators = sums / counts
        applicable = batchnorm_indicators[: self._n_batchnorm]
        parts.append(applicable.T)
        columns = [part.float() for part in parts]
        return torch.cat(columns, dim=1)

    def _forward(self, images: Tensor) -> _ForwardPass:
        n_images = len(images)
        n_indicators = len(BATCHNORM_INDICATORS)
        device = images.device
        latents: list[Tensor] = []
        sums = torch.zeros(n_indicators, n_images, device=device)
        n_channels = torch.zeros(n_indicators, dtype=torch.int64, device=device)

        def add_batchnorm_sums(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal sums, n_channels
            assert isinstance(layer, _BatchNorm)
            maps = inputs[0]
            # A layer that sees one map per token gets more rows than there are images.
            if len(maps) == n_images:
                layer_sums, layer_channels = batchnorm_sums(layer, maps)
                sums = sums + layer_sums
                n_channels = n_channels + layer_channels

        def record_latents(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            latents.append(inputs[0])

        with ExitStack() as hooks, torch.no_grad():
            for layer in self._batchnorms:
                hook = layer.register_forward_pre_hook(add_batchnorm_sums)
                hooks.enter_context(hook)
            if self._head is not None:
                hook = self._head.register_forward_pre_hook(record_latents)
                hooks.enter_context(hook)
            logits = self.network(images)
        return _ForwardPass(logits, latents, sums, n_channels)

    def _check_mode(self) -> None:
        if self.network.training:
            raise ValueError(
                "the network is in training mode, where BatchNorm follows the batch: "
                "call .eval() first"
            )


# `penultimate.last_linear` takes the last layer in order of definition, since its callers have no
# images for a trial pass. Here the indicators would be silently wrong for a layer whose output is
# not the logits, and a network without such a layer is not an error: hence the trial pass.
def _layer_of_the_logits(network: nn.Module, images: Tensor) -> nn.Linear | None:
    """Return the linear layer whose output is the logits, or None where another kind makes them."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def record_call(layer: nn.Linear, _inputs: object, output: Tensor) -> None:
        calls.append((layer, output))

    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_hook(record_call)
                hooks.enter_context(hook)
        logits = network(images)
    _check_logits(logits, len(images))

    # The last call wins, where a layer is called more than once.
    for layer, output in reversed(calls):
        if torch.equal(output, logits):
            return layer
    return None


def _check_logits(logits: object, n_images: int) -> None:
    if not isinstance(logits, Tensor):
        found = type(logits).__name__
    elif logits.ndim != 2 or len(logits) != n_images or logits.shape[1] < 2:
        found = str(tuple(logits.shape))
    else:
        return
    raise ValueError(
        f"the network returns {found} for {n_images} images; expected (N, K) logits with K >= 2"
    )
