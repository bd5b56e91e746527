"""EfficientNet-Lite0 with ImageNet's classes, from a package on PyPI (the extra `caltech`).

The teacher of conf/caltech, and an example of a factory for a network of which only some outputs
are needed: the parameter `teacher.architecture` names it as
`pu_kd_pipeline.learning.networks.efficientnet_lite:efficientnet_lite0`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

N_OUTPUTS = 1000  # ImageNet's classes


class SelectedOutputs(nn.Module):
    """Some of the logits of a network, in a given order.

    Their softmax is that of the network for an image that is known to be of one of these classes.
    All weights are those of the network, so that its weights files fit.

    Args:
        network: maps (N, C, H, W) images to (N, M) logits.
        outputs: K positions in 0..M-1.
    """

    def __init__(self, network: nn.Module, outputs: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        positions = torch.tensor(outputs, dtype=torch.int64)
        # Not persistent: weights files have no such tensor.
        self.register_buffer("outputs", positions, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 images to (N, K) logits."""
        logits: Tensor = self.network(images)
        return logits.index_select(1, self.get_buffer("outputs"))


def efficientnet_lite0(n_classes: int, outputs: Sequence[int]) -> nn.Module:
    """Return an untrained EfficientNet-Lite0 (4.7 M parameters) that is restricted to some outputs.

    Source: Tan & Le 2019 (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6.

    Args:
        n_classes: K.
        outputs: K different positions among ImageNet's 1,000 classes, in the order of the teacher's
            classes.

    Raises:
        ValueError: the outputs do not fit, or the package is not installed.
    """
    positions = list(outputs)
    is_in_range = all(0 <= position < N_OUTPUTS for position in positions)
    if len(set(positions)) != n_classes or len(positions) != n_classes or not is_in_range:
        raise ValueError(
            f"`outputs` needs one position in 0..{N_OUTPUTS - 1} for each of the {n_classes} "
            f"classes, all different, got {positions}"
        )
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as exc:
        raise ValueError(
            f"it needs the package efficientnet-lite-pytorch ({exc}): install the extra, "
            "`pip install -e '.[caltech]'`"
        ) from exc
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return SelectedOutputs(network, positions)
