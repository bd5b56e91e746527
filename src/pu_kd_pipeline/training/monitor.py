"""Measuring a student during training, and remembering the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast, inference_batch_size
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import Record
from pu_kd_pipeline.learning.workers import ALONE, Workers
from pu_kd_pipeline.learning.yardstick import closeness
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.training.final_phase import AveragedStudent

YARDSTICK_KL = "yardstick_kl"  # the column of the history that `keep: best` reads


@dataclass(frozen=True)
class LabeledImages:
    """Images that a student is not trained on, and the class it should give each of them.

    Attributes:
        images: n images.
        classes: (n,) int64 on the images' device.
    """

    images: ImageRows
    classes: Tensor

    def measure(self, logits: Tensor) -> dict[str, float]:
        """Return the columns of the history that (n, K) logits of a student give."""
        is_right = logits.argmax(dim=1) == self.classes
        accuracy = is_right.float().mean()
        return {"watched_accuracy": accuracy.item()}


@dataclass(frozen=True)
class YardstickImages:
    """The yardstick's images, and what the teacher answers.

    Attributes:
        images: n images.
        teacher_logits: (n, K) float32 on the images' device.
    """

    images: ImageRows
    teacher_logits: Tensor

    def measure(self, logits: Tensor) -> dict[str, float]:
        """Return the columns of the history that (n, K) logits of a student give."""
        found = closeness(self.teacher_logits, logits)
        return {"yardstick_agreement": found.agreement, YARDSTICK_KL: found.kl}


def clean_logits(
    network: nn.Module,
    images: ImageRows,
    normalize: Normalize,
    compute: ComputeParams,
    workers: Workers = ALONE,
) -> Tensor:
    """Return the (n, K) float32 logits that a network in eval mode gives clean views of images.

    Each worker computes its part of them, of at least one image.
    """
    size = inference_batch_size(compute, images.device, images.image_shape)
    # Batches of inference may be larger than those of training: no gradient is kept.
    every_row = torch.arange(len(images))
    if len(images) < workers.n:
        workers = ALONE
    logits = []
    with torch.inference_mode(), autocast(compute, images.device):
        for rows in workers.own(every_row).split(size):
            views = normalize(images.batch(rows))
            logits.append(network(views).float())
    return workers.gather_uneven(torch.cat(logits), len(images))


class BestStudent:
    """The weights at the record closest to the teacher on the yardstick; the first one of equals.

    Closest by the KL divergence: among the few thousand images of a yardstick the agreement of two
    records differs by single images, and is often equal.

    Args:
        student: the network in training.
        keeps_best: false: nothing is remembered, and the last weights stay.

    Attributes:
        update: the update of the best record.
    """

    def __init__(self, student: nn.Module, *, keeps_best: bool) -> None:
        self._student = student
        self.keeps_best = keeps_best
        # Above every divergence, so that the first record is always remembered.
        self._kl = math.inf
        self._state: dict[str, Tensor] = {}
        self.update = 0.0

    def compare(self, record: Record) -> None:
        """Remember the current weights if their record is the best so far."""
        if not self.keeps_best:
            return
        kl = record[YARDSTICK_KL]
        # Not above: nan is no best record.
        if not kl < self._kl:
            return
        self._kl = kl
        self.update = record["update"]
        state = self._student.state_dict()
        # The tensors of a state dict are the parameters themselves, which training changes.
        self._state = {name: value.clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "kl": self._kl,
            "update": self.update,
            "state": self._state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kl = state["kl"]
        self.update = state["update"]
        self._state = state["state"]

    def restore(self) -> None:
        """Give the student its best weights."""
        if self._state:
            self._student.load_state_dict(self._state)


@dataclass(frozen=True)
class StudentMonitor:
    """Adds what each eval set measures to the student's records; the `extend_record` of `fit`.

    Where weights are averaged, the averaged ones are measured: they are those that would be kept.

    Attributes:
        student: the network in training.
        eval_sets: images that it is not trained on.
        best: compared with every record.
        normalize: of the network's images, on the device.
        compute: precision and batch size.
        averaged: the student with averaged weights; None: they are not averaged.
        workers: that train the student together.
    """

    student: nn.Module
    eval_sets: Sequence[LabeledImages | YardstickImages]
    best: BestStudent
    normalize: Normalize
    compute: ComputeParams
    averaged: AveragedStudent | None = None
    workers: Workers = ALONE

    def __call__(self, record: Record) -> Record:
        if self.averaged is None or not self.eval_sets:
            return self._measured(record)
        with self.averaged.applied():
            return self._measured(record)

    def _measured(self, record: Record) -> Record:
        for eval_set in self.eval_sets:
            # Without dropout, and with the running statistics of BatchNorm, as a deployed student.
            self.student.eval()
            logits = clean_logits(
                self.student, eval_set.images, self.normalize, self.compute, self.workers
            )
            self.student.train()
            record.update(eval_set.measure(logits))
        self.best.compare(record)
        return record
