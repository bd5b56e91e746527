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

    The descriptor is the concatenation of the global average of each tap (Eq. 4): (N, C, H, W) maps
    are averaged over H and W (or (N, H, W, C) ones), (N, T, C) token sequences over T, and (N, C)
    vectors are taken as they are.

    Args:
        network: maps images to (N, K) logits; its modules are shared, not copied.
        taps: names of layers (or of torchvision's graph nodes); None takes the network's
            `default_taps`, the stages of a ResNet, or the last layer or block at each of the last
            four resolutions.
        image_shape: (C, H, W) of the images, needed to find default taps and the width of the
            descriptor.

    Raises:
        ValueError: a tap is not a layer of the network, or does not return a (N, ...) tensor.
    """

    def __init__(
        self, network: nn.Module, taps: Sequence[str] | None, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        if taps is None:
            taps = default_taps(network, image_shape)
        self.taps = tuple(taps)
        self._tapped = tapped_network(network, self.taps)

        # Only a forward pass shows how many channels each tap has.
        self.eval()
        parameter = next(network.parameters())
        with torch.no_grad():
            image = torch.zeros(1, *image_shape, device=parameter.device)
            pooled, _ = self._pooled(image)
        widths = [part.shape[1] for part in pooled]
        self.descriptor_size: int = sum(widths)
        self.last_tap_size: int = widths[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N, D) float32 descriptor and the (N, K) float32 logits.

        Args:
            images: (N, C, H, W) float32.
        """
        pooled, logits = self._pooled(images)
        descriptor = torch.cat(pooled, dim=1)
        # Under autocast the network gives bf16.
        return descriptor.float(), logits.float()

    def maps(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of the taps, neither averaged nor converted, and the (N, K) logits.

        Args:
            images: (N, C, H, W) float32.
        """
        tapped: tuple[list[Tensor], Tensor] = self._tapped(images)
        return tapped

    def _pooled(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        maps, logits = self._tapped(images)
        pooled = []
        for tap, feature_map in zip(self.taps, maps, strict=True):
            average = global_average(feature_map, tap)
            pooled.append(average)
        return pooled, logits


def default_taps(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the layers to tap when the user names none."""
    # Our own networks name their taps in an attribute of the class.
    own = getattr(network, "default_taps", None)
    if own is not None:
        return tuple(own)
    resnet_stages = ("layer1", "layer2", "layer3", "layer4")
    if all(hasattr(network, stage) for stage in resnet_stages):
        return resnet_stages
    return last_layer_of_each_resolution(network, image_shape)


def global_average(feature_map: Tensor, tap: str) -> Tensor:
    """Return one vector per image: the average of a map over its places, or of tokens.

    Args:
        feature_map: (N, C, H, W), channels last too, (N, T, C), or (N, C), which has nothing to
            average; any float dtype.
        tap: the name of the layer, for the error.

    Returns:
        (N, C) float32 (float64 for float64 maps).

    Raises:
        ValueError: the map has another shape.
    """
    if not isinstance(feature_map, Tensor):
        raise _wrong_tap(tap, type(feature_map).__name__)
    if feature_map.ndim not in (2, 3, 4):
        shape = tuple(feature_map.shape)
        raise _wrong_tap(tap, str(shape))

    # The average of bf16 maps has more digits than each value, so bf16 would round it.
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    places = spatial_axes(feature_map)
    if not places:
        return feature_map.to(dtype)
    return feature_map.mean(dim=places, dtype=dtype)


def _wrong_tap(tap: str, found: str) -> ValueError:
    return ValueError(f"the tap {tap!r} gives {found}; expected (N, C, H, W), (N, T, C) or (N, C)")


def to_float16(descriptor: Tensor) -> Tensor:
    """Return the descriptor as stored: float16, clamped to its finite range."""
    clamped = descriptor.clamp(-_LARGEST_FLOAT16, _LARGEST_FLOAT16)
    return clamped.half()


def teacher_outputs(logits: Tensor) -> Tensor:
    """Return statistics of the teacher's logits z: the columns of `TEACHER_OUTPUTS`.

    Confidence max softmax(z) in (0, 1], entropy in nats, energy logsumexp(z) (Liu et al. 2020, sign
    flipped so that larger means more related), and the margin between the two largest logits.

    Args:
        logits: (N, K), K >= 2.

    Returns:
        (N, 4) float32.
    """
    logits = logits.float()
    # The entropy needs log-probabilities that stay finite where a probability rounds to zero.
    log_probabilities = logits.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    confidence = probabilities.amax(dim=1)
    weighted_logs = probabilities * log_probabilities
    entropy = -weighted_logs.sum(dim=1)

    energy = logits.logsumexp(dim=1)
    top_two = logits.topk(2, dim=1).values
    largest = top_two[:, 0]
    second = top_two[:, 1]
    margin = largest - second
    # In the order of `TEACHER_OUTPUTS`
    return torch.stack([confidence, entropy, energy, margin], dim=1)
