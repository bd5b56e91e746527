"""Measuring a student during training, and remembering the best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast, inference_batch_size
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import Record
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.training.final_phase import AveragedStudent


@dataclass(frozen=True)
class EvalSet:
    """Images that a student is not trained on, and the class it should give each of them.

    Attributes:
        images: n images.
        classes: (n,) int64 on the images' device.
    """

    images: ImageRows
    classes: Tensor


def predicted_classes(
    network: nn.Module, images: ImageRows, normalize: Normalize, compute: ComputeParams
) -> Tensor:
    """Return the (n,) int64 classes that a network in eval mode gives clean views of images."""
    size = inference_batch_size(compute, images.device, images.image_shape)
    # Batches of inference may be larger than those of training: no gradient is kept.
    every_row = torch.arange(len(images))
    classes = []
    with torch.inference_mode(), autocast(compute, images.device):
        for rows in every_row.split(size):
            views = normalize(images.batch(rows))
            logits = network(views)
            classes.append(logits.argmax(dim=1))
    return torch.cat(classes)


class BestStudent:
    """The weights at the record with the highest held-out agreement; the first one of equals.

    Args:
        student: the network in training.
        keeps_best: false: nothing is remembered, and the last weights stay.

    Attributes:
        update: the update of the best record.
    """

    def __init__(self, student: nn.Module, *, keeps_best: bool) -> None:
        self._student = student
        self.keeps_best = keeps_best
        # Below every agreement, so that the first record is always remembered.
        self._agreement = -1.0
        self._state: dict[str, Tensor] = {}
        self.update = 0.0

    def compare(self, record: Record) -> None:
        """Remember the current weights if their record is the best so far."""
        if not self.keeps_best:
            return
        agreement = record["held_out_agreement"]
        if agreement <= self._agreement:
            return
        self._agreement = agreement
        self.update = record["update"]
        state = self._student.state_dict()
        # The tensors of a state dict are the parameters themselves, which training changes.
        self._state = {name: value.clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "agreement": self._agreement,
            "update": self.update,
            "state": self._state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._agreement = state["agreement"]
        self.update = state["update"]
        self._state = state["state"]

    def restore(self) -> None:
        """Give the student its best weights."""
        if self.keeps_best:
            self._student.load_state_dict(self._state)


@dataclass(frozen=True)
class StudentMonitor:
    """Adds a student's accuracy on each eval set to its records; the `extend_record` of `fit`.

    Where weights are averaged, the averaged ones are measured: they are those that would be kept.

    Attributes:
        student: the network in training.
        eval_sets: column of the history -> images and their classes.
        best: compared with every record.
        normalize: of the network's images, on the device.
        compute: precision and batch size.
        averaged: the student with averaged weights; None: they are not averaged.
    """

    student: nn.Module
    eval_sets: Mapping[str, EvalSet]
    best: BestStudent
    normalize: Normalize
    compute: ComputeParams
    averaged: AveragedStudent | None = None

    def __call__(self, record: Record) -> Record:
        if self.averaged is None or not self.eval_sets:
            return self._measured(record)
        with self.averaged.applied():
            return self._measured(record)

    def _measured(self, record: Record) -> Record:
        for column, eval_set in self.eval_sets.items():
            record[column] = self._accuracy(eval_set)
        self.best.compare(record)
        return record

    def _accuracy(self, eval_set: EvalSet) -> float:
        # Without dropout, and with the running statistics of BatchNorm, as a deployed student.
        self.student.eval()
        classes = predicted_classes(self.student, eval_set.images, self.normalize, self.compute)
        self.student.train()
        is_right = classes == eval_set.classes
        accuracy = is_right.float().mean()
        return accuracy.item()
