"""The PU classifier: channel attention over the multi-scale descriptor and a linear score (Xu et al. 2019, Eq. 4-6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.features import TEACHER_OUTPUTS, FeatureExtractor, teacher_outputs

_LEAST_RELATIVE_STD = 1e-5  # of the largest value; below it is rounding


class PUHead(nn.Module):
    """Score (N,) = Linear([w * o, t]) with attention w = sigmoid(W2 relu(W1 o)) over the descriptor o (Eq. 5-6).

    W1 is (D/r, D), W2 is (D, D/r), both without bias, as in the authors' code. t are the teacher's outputs. Without
    attention w is 1 and the score is linear in the descriptor.
    Inputs are standardized with the pool's mean and standard deviation, which the papers leave out: channels of
    different taps differ in scale by orders of magnitude, and the frozen descriptor cannot adapt.

    Args:
        descriptor_size: D; 0 leaves the descriptor out.
        n_outputs: number of teacher outputs; 0 leaves them out.
        reduction: r, the bottleneck of the attention; None leaves the attention out.
    """

    def __init__(self, descriptor_size: int, n_outputs: int, reduction: int | None) -> None:
        super().__init__()
        if descriptor_size + n_outputs == 0:
            raise ValueError("a PU head needs a descriptor, teacher outputs, or both")
        self.descriptor_size = descriptor_size
        self.squeeze: nn.Linear | None = None
        self.excite: nn.Linear | None = None
        if descriptor_size and reduction is not None:
            hidden = max(1, descriptor_size // reduction)
            self.squeeze = nn.Linear(descriptor_size, hidden, bias=False)
            self.excite = nn.Linear(hidden, descriptor_size, bias=False)
        self.score = nn.Linear(descriptor_size + n_outputs, 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(descriptor_size + n_outputs))
        self.register_buffer("std", torch.ones(descriptor_size + n_outputs))

    def standardize_by(self, features: Tensor) -> None:
        """Take mean and standard deviation from (N, D + outputs) features of the pool."""
        features = features.float()
        self.mean.copy_(features.mean(dim=0))
        # a channel that is constant in the pool may vary among the positives: it keeps its scale
        std = features.std(dim=0, correction=0)
        self.std.copy_(
            torch.where(std > _LEAST_RELATIVE_STD * features.abs().amax(dim=0), std, 1.0)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, D + outputs) float features to (N,) float32 scores F(x); larger means more like the positives."""
        features = torch.sub(features, self.mean).div_(
            self.std
        )  # float16 becomes float32 on the way
        if self.squeeze is not None and self.excite is not None:
            descriptor = features[:, : self.descriptor_size]
            attention = torch.sigmoid(self.excite(torch.relu(self.squeeze(descriptor))))
            weighted = attention * descriptor
            has_outputs = features.shape[1] > self.descriptor_size
            features = (
                torch.cat([weighted, features[:, self.descriptor_size :]], dim=1)
                if has_outputs
                else weighted
            )
        scores: Tensor = self.score(features).squeeze(1)
        return scores


class FullPUClassifier(nn.Module):
    """The head on a backbone that is trained along with it, as the authors' code does."""

    def __init__(self, extractor: FeatureExtractor, head: PUHead) -> None:
        super().__init__()
        self.extractor, self.head = extractor, head

    def train(self, mode: bool = True) -> FullPUClassifier:
        """Train the weights, but keep BatchNorm at the teacher's statistics: it must not learn to tell P from U."""
        super().train(mode)
        for module in self.extractor.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) normalized float32 images to (N,) float32 scores."""
        descriptor, _ = self.extractor(images)
        with torch.autocast(
            images.device.type, enabled=False
        ):  # bf16 scores would tie by the thousand
            scores: Tensor = self.head(descriptor)
        return scores


def n_outputs_of(kind: str) -> int:
    """Return how many of the teacher's outputs features of a kind end with."""
    return len(TEACHER_OUTPUTS) if kind in ("teacher_outputs", "both") else 0


def pu_features(descriptor: Tensor, logits: Tensor, kind: str, last_tap_size: int) -> Tensor:
    """Return what the PU head reads: (N, D) or (N, last_tap_size) as stored, or (N, 4) or (N, D + 4) float32.

    Args:
        descriptor: (N, D) float16 or float32.
        logits: (N, K) teacher logits.
        kind: `descriptor`, `last_layer`, `teacher_outputs` or `both`.
        last_tap_size: channels of the last tap, which the descriptor ends with.
    """
    if kind == "descriptor":
        return descriptor
    if kind == "last_layer":
        return descriptor[:, -last_tap_size:]
    outputs = teacher_outputs(logits)
    return outputs if kind == "teacher_outputs" else torch.cat([descriptor.float(), outputs], dim=1)


def make_head(descriptor_size: int, kind: str, reduction: int | None) -> PUHead:
    """Return an untrained head for features of a kind; `descriptor_size` is that of the part the kind reads."""
    return PUHead(
        descriptor_size if kind != "teacher_outputs" else 0, n_outputs_of(kind), reduction
    )
