"""One forward pass of a network that gives all indicators."""

from __future__ import annotations

from contextlib import ExitStack

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


class RelatednessProbe:
    """A classifier that tells of a batch of images, in one forward pass, every indicator that applies to it.

    Those of the logits always apply. Those of the last linear layer do where its output is the logits (SqueezeNet ends
    in a convolution). Those of BatchNorm read every call of a layer that has running statistics and sees one map an
    image (not one a token). `names` says which apply, in the order of `INDICATORS`.

    Args:
        network: maps (N, C, H, W) images to (N, K) logits, in eval mode; shared, and hooked only during a call.
        image_shape: (C, H, W), needed to see which indicators apply.

    Raises:
        ValueError: the network is in training mode, or returns no (N, K) logits with K >= 2.
    """

    names: tuple[str, ...]

    def __init__(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.network, self.image_shape = network, image_shape
        self._check_mode()
        modules = list(network.modules())
        self._batchnorms = [
            m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None
        ]
        images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(
            next(network.parameters())
        )
        self._head = _last_linear(network, images)
        _, _, _, n_channels = self._forward(images)
        self._n_batchnorm = int(
            (n_channels > 0).sum()
        )  # of the indicators: none, the first two, or all
        latent = LATENT_INDICATORS if self._head is not None else ()
        self.names = (*LOGIT_INDICATORS, *latent, *BATCHNORM_INDICATORS[: self._n_batchnorm])

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 normalized images to (N, len(names)) float32 indicators, higher is less related.

        Raises:
            ValueError: the images have another shape than the probe was made for, or the network is in training mode.
        """
        self._check_mode()
        if images.ndim != 4 or tuple(images.shape[1:]) != tuple(self.image_shape):
            raise ValueError(
                f"images must be (N, {', '.join(map(str, self.image_shape))}), got {tuple(images.shape)}"
            )
        logits, latents, sums, n_channels = self._forward(images)
        parts = [logit_indicators(logits)]
        if self._head is not None:
            parts.append(
                latent_indicators(latents[-1], self._head.weight.detach(), logits.argmax(dim=1))
            )
        parts.append((sums / n_channels.unsqueeze(1))[: self._n_batchnorm].T)
        return torch.cat([part.float() for part in parts], dim=1)

    def _forward(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Return the logits, the last linear layer's inputs, and of all BatchNorms what `batchnorm_sums` returns."""
        latents: list[Tensor] = []
        sums = torch.zeros(len(BATCHNORM_INDICATORS), len(images), device=images.device)
        n_channels = torch.zeros(len(BATCHNORM_INDICATORS), dtype=torch.int64, device=images.device)

        def read(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal sums, n_channels
            assert isinstance(layer, _BatchNorm)
            if len(inputs[0]) == len(images):
                layer_sums, layer_channels = batchnorm_sums(layer, inputs[0])
                sums, n_channels = sums + layer_sums, n_channels + layer_channels

        with ExitStack() as hooks, torch.no_grad():
            for layer in self._batchnorms:
                hooks.enter_context(layer.register_forward_pre_hook(read))
            if self._head is not None:
                hook = self._head.register_forward_pre_hook(
                    lambda _layer, inputs: latents.append(inputs[0])
                )
                hooks.enter_context(hook)
            logits = self.network(images)
        return logits, latents, sums, n_channels

    def _check_mode(self) -> None:
        if self.network.training:
            raise ValueError(
                "the network is in training mode, where BatchNorm follows the batch: call .eval() first"
            )


def _last_linear(network: nn.Module, images: Tensor) -> nn.Linear | None:
    """Return the linear layer whose output is the logits, or None where another kind of layer makes them."""
    calls: list[tuple[nn.Linear, Tensor]] = []
    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_hook(
                    lambda layer, _inputs, output: calls.append((layer, output))
                )
                hooks.enter_context(hook)
        logits = network(images)
    if (
        not isinstance(logits, Tensor)
        or logits.ndim != 2
        or len(logits) != len(images)
        or logits.shape[1] < 2
    ):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the network returns {found} for {len(images)} images; expected (N, K) logits with K >= 2"
        )
    makers = [layer for layer, output in calls if torch.equal(output, logits)]
    return makers[-1] if makers else None
