"""What the trainings of a pilot cost, and how long they can be within its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pu_kd_pipeline.devices import autocast, prepare_device
from pu_kd_pipeline.learning.loop import make_optimizer
from pu_kd_pipeline.learning.losses.distillation import kd_loss
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.batches import views_of
from pu_kd_pipeline.training.distillation import cache_params
from pu_kd_pipeline.training.teacher_cache import n_views_to_cache

_N_STEPS = 12
_SHORTEST = 10  # updates
_STEP = 10  # lengths are multiples of it
_MAX_SHARED_VIEWS = 8  # of an image


def step_seconds(teacher: Model, params: DistillationParams) -> float:
    """Return how long one update of a student takes, without its teacher: the median of a dozen.

    The images are noise, and the network is thrown away.

    Raises:
        InputError: the student cannot be built.
    """
    device = prepare_device(params.compute)
    student = new_student(teacher, params.student_architecture, params.student_options, {})
    network = student.network.to(device).train()
    optimizer = make_optimizer(network, **params.optimizer.model_dump(exclude={"schedule"}))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(params.batch_size, *student.image_shape, generator=generator).to(device)
    answers = torch.randn(params.batch_size, teacher.n_classes, generator=generator).to(device)
    seconds = []
    for _ in range(_N_STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        with autocast(params.compute, device):
            logits = network(images)
        loss = kd_loss(logits.float(), answers, params.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # waits until the device is done
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def n_shared_views(params: DistillationParams) -> int:
    """Return how many views of each image trainings ask the teacher for and share.

    0 where each training asks for its own, see `teacher_cache.TeacherOutputs`, or where all views
    of all images would take longer than short trainings need.
    """
    params = cache_params(params)
    n_views = views_of(params.augmentation).n_views
    on_cpu = prepare_device(params.compute).type == "cpu"
    if params.teacher_cache != "exact" or params.mixed_share > 0 or not on_cpu:
        return 0
    if n_views is None or n_views > _MAX_SHARED_VIEWS:
        return 0
    return n_views


@dataclass(frozen=True)
class TrainingCost:
    """What trainings of one student cost.

    Attributes:
        params: of the training; its number of updates does not count.
        n_images: that it learns from.
        step: seconds of an update without the teacher.
        teacher: seconds of an image in the teacher.
        is_for_many: many trainings share the teacher's outputs, where these can be shared.
    """

    params: DistillationParams
    n_images: int
    step: float
    teacher: float
    is_for_many: bool = False

    def seconds(self, n_updates: int, *, shares_outputs: bool = False) -> float:
        """Return the seconds of a training.

        Args:
            n_updates: of the training.
            shares_outputs: the teacher's outputs that trainings can share exist already.
        """
        params = cache_params(self.params.model_copy(update={"n_updates": n_updates}))
        is_for_many = self.is_for_many and n_shared_views(params) > 0
        n_cached = n_views_to_cache(params, self.n_images, is_for_many=is_for_many)
        # A cache that is not worth it or not possible: the teacher sees every batch.
        n_asked = float(n_updates * params.batch_size)
        if n_cached is not None:
            n_mixed = params.mixed_share * n_asked
            n_asked = n_mixed + self.n_images * n_cached
            if shares_outputs and n_shared_views(params):
                n_asked = n_mixed
        return n_updates * self.step + n_asked * self.teacher


class RoundPace:
    """How long trainings next to each other take, compared with one after the other.

    How much trainings slow each other down is not known before the first round: until then, as many
    workers as there are take as long as one. Afterwards it is what the round took.

    Attributes:
        n_at_a_time: trainings next to each other.
    """

    def __init__(self) -> None:
        self.n_at_a_time = 1
        self._slowdown: float | None = None

    def share(self, n: int) -> float:
        """Return the time of n similar trainings, as a share of that of one after the other."""
        if self._slowdown is None:
            return 1.0
        return self._slowdown * self._turns(n) / n

    def observe(self, n: int, expected_seconds: float, seconds: float) -> None:
        """Learn from a round.

        Args:
            n: its trainings.
            expected_seconds: of them, one after the other.
            seconds: that they took.
        """
        if n and expected_seconds > 0:
            self._slowdown = seconds / (expected_seconds * self._turns(n) / n)

    def _turns(self, n: int) -> int:
        """Return how many trainings follow each other, where n of them are distributed."""
        return -(-n // self.n_at_a_time)


def affordable_length(
    costs: Sequence[Sequence[TrainingCost]],
    seconds: float,
    longest: int,
    pace: RoundPace | None = None,
) -> int | None:
    """Return the length of the next round of trainings, of which each has twice that before.

    Args:
        costs: of the trainings of each round that is left; only the first one's are exact.
        seconds: that are left.
        longest: number of updates of a full training, which the last round does not exceed.
        pace: of trainings next to each other; None: one follows the other.

    Returns:
        A number of updates, None where not even the shortest trainings fit.
    """
    pace = pace or RoundPace()
    n_rounds = len(costs)
    last_factor = 2 ** (n_rounds - 1)
    length = max(longest // last_factor, _SHORTEST)
    while length > _SHORTEST and _seconds_of(costs, length, pace) > seconds:
        length = max(int(length * 0.95), _SHORTEST)
    if _seconds_of(costs, length, pace) > seconds:
        return None
    if length * last_factor >= longest:
        return length
    return max(length // _STEP * _STEP, _SHORTEST)


def _seconds_of(costs: Sequence[Sequence[TrainingCost]], length: int, pace: RoundPace) -> float:
    total = 0.0
    for position, of_round in enumerate(costs):
        n_alone = pace.n_at_a_time
        # Of one process, only the first training of all computes the outputs that others share.
        if n_alone == 1 and position > 0:
            n_alone = 0
        seconds = round_seconds(of_round, length * 2**position, n_alone)
        total += seconds * pace.share(len(of_round))
    return total


def round_seconds(costs: Sequence[TrainingCost], length: int, n_alone: int) -> float:
    """Return the seconds of the trainings of a round, one after the other.

    Args:
        costs: of the trainings.
        length: number of updates of each.
        n_alone: how many compute the teacher's outputs for themselves that others share: one of
            each process.
    """
    total = 0.0
    for number, cost in enumerate(costs):
        total += cost.seconds(length, shares_outputs=number >= n_alone)
    return total
