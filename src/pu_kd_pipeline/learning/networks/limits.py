"""Sizes and options that our networks are known to work with: plain data, so no torch is needed.

Within these limits a network of `build.NETWORKS` can be built, takes its images in both modes and
has its default taps; tests build the corners. Beyond them it may work too, which only building it
can show. Keep the two files together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Images of size_px x size_px, and integer options by name."""

    size_px: range
    options: Mapping[str, range] = field(default_factory=dict)


# The networks themselves have no upper limits; these keep the tests of the corners small.
N_CLASSES = range(2, 1001)
IN_CHANNELS = (1, 3)
LIMITS = {
    "lenet5": Limits(range(32, 36)),  # its last convolution leaves one pixel
    "lenet5_half": Limits(range(32, 36)),
    "digits_cnn": Limits(range(4, 65), {"width": range(1, 129)}),
    "cifar_resnet": Limits(
        range(8, 65),
        # Which factors leave a pixel of an image depends on its size.
        {"depth": range(8, 57, 6), "width": range(1, 65), "downscale": range(1, 2)},
    ),
    "cifar_resnet18": Limits(range(8, 65)),
    "cifar_resnet34": Limits(range(8, 65)),
    "cifar_vgg13": Limits(range(32, 65)),
    "cifar_vgg19": Limits(range(32, 65)),
}


def is_known_to_work(
    architecture: str, n_classes: int, in_channels: int, size_px: int, options: Mapping[str, Any]
) -> bool:
    """Return whether a network that starts untrained and has its default taps surely works.

    False only means that it has to be built to find out.
    """
    limits = LIMITS.get(architecture)
    if limits is None:
        return False
    if n_classes not in N_CLASSES or in_channels not in IN_CHANNELS:
        return False
    if size_px not in limits.size_px:
        return False
    for name, value in options.items():
        # A bool or a float equals an integer of a range, but is not a valid option.
        if type(value) is not int or value not in limits.options.get(name, ()):
            return False
    return True
