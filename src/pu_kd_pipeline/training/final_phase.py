"""The final phase of a training, on fewer images, and the average of the student's weights."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.loop import shuffled_batches
from pu_kd_pipeline.learning.selection import RELATED
from pu_kd_pipeline.learning.weight_average import (
    WeightAverage,
    has_batch_norm,
    reestimate_batch_norm,
)
from pu_kd_pipeline.params.distillation import DistillationParams

logger = logging.getLogger(__name__)

# Images that the statistics of BatchNorm are estimated on: their error is then a few percent.
STATISTICS_IMAGES = 2048


@dataclass(frozen=True)
class FinalPhase:
    """The images of the final phase, and when it starts.

    Attributes:
        rows: (n,) int64, their positions among the training images, n > 0.
        n_before: updates before the phase.
    """

    rows: Tensor
    n_before: int

    def after(
        self, positions: Iterator[Tensor], batch_size: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Yield the batches of positions before the phase, and then those of the phase forever."""
        yield from itertools.islice(positions, self.n_before)
        rows = self.rows.to(generator.device)
        # Every pass shows each image once, as without probabilities.
        for indices in shuffled_batches(len(rows), batch_size, generator):
            yield rows[indices]


def n_final_updates(params: DistillationParams) -> int:
    """Return the number of updates in the final phase."""
    share = params.final_phase.share
    if share == 0:
        return 0
    return max(1, round(share * params.n_updates))


def final_phase_of(rows: pd.DataFrame, params: DistillationParams, name: str) -> FinalPhase | None:
    """Return the final phase that the parameters ask for; None: there is none.

    Args:
        rows: the training images, rows of a manifest in the order of training. With
            `labeled_and_related`, the column `reason` says which pool images are related.
        params: the block.
        name: of the stage, for messages.

    Raises:
        InputError: there is no image for it.
    """
    if params.final_phase.share == 0:
        return None
    is_taken = rows["origin"] == "labeled"
    if params.final_phase.images == "labeled_and_related":
        if "reason" in rows:
            is_taken |= rows["reason"] == RELATED
        else:
            logger.warning(
                "%s.final_phase.images: the manifest does not say which images are related: the "
                "final phase shows the labeled images alone",
                name,
            )
    positions = is_taken.to_numpy().nonzero()[0]
    if not len(positions):
        raise InputError(
            f"{name}.final_phase: no image of the manifest belongs to its last phase "
            f"({params.final_phase.images}): set final_phase.share to 0"
        )
    n_before = params.n_updates - n_final_updates(params)
    return FinalPhase(torch.from_numpy(positions), n_before)


def weight_average(student: nn.Module, params: DistillationParams) -> WeightAverage | None:
    """Return the average of a student's weights that the parameters ask for; None: there is none.

    Args:
        student: in training, on its device.
        params: the block.
    """
    if params.weight_averaging == "none":
        return None
    if params.weight_averaging == "ema":
        return WeightAverage(student, decay=params.ema_decay)
    n_skipped = params.n_updates - n_final_updates(params)
    return WeightAverage(student, decay=1.0, n_skipped=n_skipped)


@dataclass(frozen=True)
class AveragedStudent:
    """Puts averaged weights into a student, with the BatchNorm statistics that belong to them.

    Attributes:
        student: the network in training.
        average: of its weights.
        batches: returns, for a number of updates, batches of images like those that the student
            learns from then; always the same ones.
        params: precision, and the size of batches.
    """

    student: nn.Module
    average: WeightAverage
    batches: Callable[[int], Iterator[Tensor]]
    params: DistillationParams

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the student its averaged weights for a while, if there are any yet."""
        if not self.average.has_started:
            yield
            return
        state = self.student.state_dict()
        # The tensors of a state dict are the parameters themselves.
        kept = {name: value.clone() for name, value in state.items()}
        self.apply()
        try:
            yield
        finally:
            self.student.load_state_dict(kept)

    def apply(self) -> None:
        """Give the student its averaged weights."""
        self.average.apply()
        if not has_batch_norm(self.student):
            return
        n_batches = -(-STATISTICS_IMAGES // self.params.batch_size)
        device = next(self.student.parameters()).device
        with autocast(self.params.compute, device):
            batches = itertools.islice(self.batches(self.average.n_updates), n_batches)
            reestimate_batch_norm(self.student, batches)
