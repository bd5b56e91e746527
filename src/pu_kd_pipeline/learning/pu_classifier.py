"""The PU classifier (Xu et al. 2019, Eq. 4-6).

Channel attention over the multi-scale descriptor, and a linear score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.features import TEACHER_OUTPUTS, FeatureExtractor, teacher_outputs

_MIN_RELATIVE_STD = 1e-5  # of the largest value; a smaller deviation is rounding


class PUHead(nn.Module):
    """Score (N,) = Linear([w * o, t]) with attention w = sigmoid(W2 relu(W1 o)) (Eq. 5-6).

    o is the descriptor, t the teacher's outputs. W1 is (D/r, D), W2 is (D, D/r), both without bias,
    as in the authors' code. Without attention w is 1 and the score is linear in the descriptor.

    Departure: inputs are standardized with the pool's mean and standard deviation, see
    docs/decisions/0003.

    Args:
        descriptor_size: D; 0 omits the descriptor.
        n_outputs: number of teacher outputs; 0 omits them.
        reduction: r, the bottleneck of the attention; None omits the attention.
    """

    def __init__(self, descriptor_size: int, n_outputs: int, reduction: int | None) -> None:
        super().__init__()
        n_features = descriptor_size + n_outputs
        if n_features == 0:
            raise ValueError("a PU head needs a descriptor, teacher outputs, or both")
        self.descriptor_size = descriptor_size

        # W1 and W2
        self.squeeze: nn.Linear | None = None
        self.excite: nn.Linear | None = None
        if descriptor_size and reduction is not None:
            hidden = max(1, descriptor_size // reduction)
            self.squeeze = nn.Linear(descriptor_size, hidden, bias=False)
            self.excite = nn.Linear(hidden, descriptor_size, bias=False)
        self.score = nn.Linear(n_features, 1)

        # Buffers, so that they are saved with the weights and never trained.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))

    def set_standardization(self, features: Tensor) -> None:
        """Take mean and standard deviation from (N, D + outputs) features of the pool."""
        features = features.float()
        mean = features.mean(dim=0)
        self.mean.copy_(mean)

        std = features.std(dim=0, correction=0)
        largest = features.abs().amax(dim=0)
        is_varied = std > _MIN_RELATIVE_STD * largest
        # A channel that is constant in the pool may vary among the positives: it keeps its scale.
        std = torch.where(is_varied, std, 1.0)
        self.std.copy_(std)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N,) float32 scores F(x); larger means more like the positives.

        Args:
            features: (N, D + outputs), float16 or float32.
        """
        # The subtraction turns float16 into float32, as the mean is float32.
        features = torch.sub(features, self.mean)
        features.div_(self.std)  # in place, which saves a copy of the batch

        if self.squeeze is not None and self.excite is not None:
            # o and t of Eq. 6
            descriptor = features[:, : self.descriptor_size]
            outputs = features[:, self.descriptor_size :]
            squeezed = self.squeeze(descriptor)
            bottleneck = torch.relu(squeezed)
            excited = self.excite(bottleneck)
            attention = torch.sigmoid(excited)
            features = attention * descriptor
            # A head without teacher outputs reads no second part.
            if outputs.shape[1] > 0:
                features = torch.cat([features, outputs], dim=1)

        scores: Tensor = self.score(features)
        return scores.squeeze(1)


class FullPUClassifier(nn.Module):
    """The head on a backbone that is trained with it, as in the authors' code."""

    def __init__(self, extractor: FeatureExtractor, head: PUHead) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    def train(self, mode: bool = True) -> FullPUClassifier:
        """Train the weights, but leave BatchNorm at the teacher's statistics and dropout off.

        BatchNorm must not learn to separate positives from unlabeled.
        """
        super().train(mode)
        for module in self.extractor.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) normalized float32 images to (N,) float32 scores."""
        descriptor, _ = self.extractor(images)
        # In bf16 thousands of scores would be equal, and a ranking needs their order.
        with torch.autocast(images.device.type, enabled=False):
            scores: Tensor = self.head(descriptor)
        return scores


def n_teacher_outputs(kind: str) -> int:
    """Return the number of teacher outputs that features of a kind end with."""
    if kind in ("teacher_outputs", "both"):
        return len(TEACHER_OUTPUTS)
    return 0


def pu_features(descriptor: Tensor, logits: Tensor, kind: str, last_tap_size: int) -> Tensor:
    """Return the input of the PU head.

    Args:
        descriptor: (N, D) float16 or float32.
        logits: (N, K) teacher logits.
        kind: `descriptor`, `last_layer`, `teacher_outputs` or `both`.
        last_tap_size: channels of the last tap, which the descriptor ends with.

    Returns:
        (N, D) or (N, last_tap_size) in the descriptor's dtype, or (N, 4) or (N, D + 4) float32.
    """
    if kind == "descriptor":
        return descriptor
    if kind == "last_layer":
        return descriptor[:, -last_tap_size:]
    outputs = teacher_outputs(logits)
    if kind == "teacher_outputs":
        return outputs
    return torch.cat([descriptor.float(), outputs], dim=1)


def make_head(descriptor_size: int, kind: str, reduction: int | None) -> PUHead:
    """Return an untrained head for features of a kind.

    Args:
        descriptor_size: width of the part of the descriptor that the kind reads; ignored for
            `teacher_outputs`.
        kind: see `pu_features`.
        reduction: see `PUHead`.
    """
    if kind == "teacher_outputs":
        descriptor_size = 0
    return PUHead(descriptor_size, n_teacher_outputs(kind), reduction)
