"""Features of images: the outputs of a network's taps, averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.taps import last_layer_of_each_resolution, spatial_axes, tapped_network

TEACHER_OUTPUTS = ("confidence", "entropy", "energy", "margin")
_LARGEST_FLOAT16 = 65504.0


class FeatureExtractor(nn.Module):
    """A network that also returns the descriptor of its tapped layers.

    The descriptor is the concatenation of the global average of each tap (Eq. 4): (N, C, H, W) maps are averaged over
    H and W (or (N, H, W, C) ones), (N, T, C) token sequences over T, and (N, C) vectors are taken as they are.

    Args:
        network: maps images to (N, K) logits; its modules are shared, not copied.
        taps: names of layers (or of torchvision's graph nodes); None takes the network's `default_taps`, the stages
            of a ResNet, or the last layer or block at each of the last four resolutions.
        image_shape: (C, H, W) of the images, needed to find default taps and the width of the descriptor.

    Raises:
        ValueError: a tap is not a layer of the network, or gives no (N, ...) tensor.
    """

    def __init__(
        self, network: nn.Module, taps: Sequence[str] | None, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.taps = tuple(taps) if taps is not None else default_taps(network, image_shape)
        self._tapped = tapped_network(network, self.taps)
        with torch.no_grad():
            device = next(network.parameters()).device
            pooled, _ = self.eval()._pooled(torch.zeros(1, *image_shape, device=device))
        self.descriptor_size: int = sum(part.shape[1] for part in pooled)
        self.last_tap_size: int = pooled[-1].shape[1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, H, W) float32 images to the (N, D) float32 descriptor and the (N, K) float32 logits."""
        pooled, logits = self._pooled(images)
        return torch.cat(pooled, dim=1).float(), logits.float()

    def maps(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map (N, C, H, W) float32 images to what the taps give, as they give it, and the (N, K) logits."""
        tapped: tuple[list[Tensor], Tensor] = self._tapped(images)
        return tapped

    def _pooled(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        maps, logits = self._tapped(images)
        return [
            global_average(feature_map, tap)
            for tap, feature_map in zip(self.taps, maps, strict=True)
        ], logits


def default_taps(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the layers to pool when the user names none."""
    own = getattr(network, "default_taps", None)
    if own is not None:
        return tuple(own)
    if all(hasattr(network, f"layer{stage}") for stage in range(1, 5)):
        return ("layer1", "layer2", "layer3", "layer4")
    return last_layer_of_each_resolution(network, image_shape)


def global_average(feature_map: Tensor, tap: str) -> Tensor:
    """Return one vector an image: the average over the places of a map or over tokens, or the vector that it is.

    Args:
        feature_map: (N, C, H, W), channels last too, (N, T, C) or (N, C), any float dtype.
        tap: its name, for the error.

    Returns:
        (N, C) float32 (float64 for float64 maps).

    Raises:
        ValueError: it has another shape.
    """
    if not isinstance(feature_map, Tensor) or feature_map.ndim not in (2, 3, 4):
        found = (
            tuple(feature_map.shape)
            if isinstance(feature_map, Tensor)
            else type(feature_map).__name__
        )
        raise ValueError(
            f"the tap {tap!r} gives {found}; expected (N, C, H, W), (N, T, C) or (N, C)"
        )
    places = spatial_axes(feature_map)
    # of bf16 maps the average keeps the digits that a single value has not
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    return feature_map.mean(dim=places, dtype=dtype) if places else feature_map.to(dtype)


def to_float16(descriptor: Tensor) -> Tensor:
    """Return the descriptor as stored: float16, clamped to its finite range."""
    return descriptor.clamp(-_LARGEST_FLOAT16, _LARGEST_FLOAT16).half()


def teacher_outputs(logits: Tensor) -> Tensor:
    """Return what the teacher's outputs say about an image: the columns of `TEACHER_OUTPUTS`.

    Confidence max softmax(z) in (0, 1], entropy in nats, energy logsumexp(z) (Liu et al. 2020, sign flipped so that
    larger means more related), and the margin between the two largest logits.

    Args:
        logits: (N, K), K >= 2.

    Returns:
        (N, 4) float32.
    """
    logits = logits.float()
    log_probabilities = logits.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    top = logits.topk(2, dim=1).values
    entropy = -(probabilities * log_probabilities).sum(dim=1)
    columns = (probabilities.amax(dim=1), entropy, logits.logsumexp(dim=1), top[:, 0] - top[:, 1])
    return torch.stack(columns, dim=1)
