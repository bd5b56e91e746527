"""Monitoring a student in training, and keeping the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast, inference_batch_size
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import Record
from pu_kd_pipeline.params.compute import ComputeParams


@dataclass(frozen=True)
class StudentMonitor:
    """Looks at a network in training by clean views of images that it is not trained on."""

    normalize: Normalize
    compute: ComputeParams

    def classes(self, network: nn.Module, images: ImageRows) -> Tensor:
        """Return the (n,) int64 classes that a network in eval mode gives the images."""
        size = inference_batch_size(self.compute, images.device, images.image_shape)
        batches = torch.arange(len(images)).split(size)
        with torch.inference_mode(), autocast(self.compute, images.device):
            views = (self.normalize(images.batch(rows)) for rows in batches)
            return torch.cat([network(batch).argmax(dim=1) for batch in views])

    def share(self, student: nn.Module, images: ImageRows, classes: Tensor) -> float:
        """Return the share of the images that a student in training puts in the given classes."""
        student.eval()
        share = (self.classes(student, images) == classes).float().mean().item()
        student.train()
        return share


class BestStudent:
    """Remembers the weights at the record with the highest held-out agreement (the first of equals)."""

    def __init__(self, student: nn.Module, *, keeps_best: bool) -> None:
        self._student, self.keeps_best = student, keeps_best
        self._agreement = -1.0
        self._state: dict[str, Tensor] = {}
        self.update = 0.0

    def look(self, record: Record) -> None:
        if self.keeps_best and record["held_out_agreement"] > self._agreement:
            self._agreement, self.update = record["held_out_agreement"], record["update"]
            self._state = {
                name: value.clone() for name, value in self._student.state_dict().items()
            }

    def state_dict(self) -> dict[str, Any]:
        return {"agreement": self._agreement, "update": self.update, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._agreement, self.update, self._state = (
            state["agreement"],
            state["update"],
            state["state"],
        )

    def restore(self) -> None:
        if self.keeps_best:
            self._student.load_state_dict(self._state)
