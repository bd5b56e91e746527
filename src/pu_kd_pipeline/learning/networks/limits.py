"""Which sizes and options our networks are known to work with: plain data, so that a check needs no torch.

Within these limits a network of `networks.NETWORKS` builds, takes its images in both modes and has its default taps:
tests build the corners. Beyond them it may be fine too, which building it tells. Keep the two files together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What a network is known to work with: images of size_px x size_px, and integer options by name."""

    size_px: range
    options: Mapping[str, range] = field(default_factory=dict)


# The upper ends are no bounds of the networks: they keep what the tests build small.
N_CLASSES = range(2, 1001)
IN_CHANNELS = (1, 3)
LIMITS = {
    "lenet5": Limits(range(32, 36)),  # its last convolution leaves one pixel
    "lenet5_half": Limits(range(32, 36)),
    "digits_cnn": Limits(range(4, 65), {"width": range(1, 129)}),
    "cifar_resnet": Limits(range(8, 65), {"depth": range(8, 57, 6), "width": range(1, 65)}),
    "cifar_resnet18": Limits(range(8, 65)),
    "cifar_resnet34": Limits(range(8, 65)),
    "cifar_vgg13": Limits(range(32, 65)),
    "cifar_vgg19": Limits(range(32, 65)),
}


def is_known_to_work(
    architecture: str, n_classes: int, in_channels: int, size_px: int, options: Mapping[str, Any]
) -> bool:
    """Return whether nothing can be wrong with a network that starts untrained and has its default taps.

    False says nothing against it: build it to find out.
    """
    limits = LIMITS.get(architecture)
    return (
        limits is not None
        and n_classes in N_CLASSES
        and in_channels in IN_CHANNELS
        and size_px in limits.size_px
        # no bool and no float, which equal an integer and are none
        and all(
            type(value) is int and value in limits.options.get(name, ())
            for name, value in options.items()
        )
    )
