"""What the trainings of a pilot cost, and how long they can be within its time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pu_kd_pipeline.devices import autocast, prepare_device
from pu_kd_pipeline.engines.ray_cluster import n_own_cpus
from pu_kd_pipeline.engines.shards import LOCAL, cpus_of_worker, is_local
from pu_kd_pipeline.learning.loop import make_optimizer
from pu_kd_pipeline.learning.losses.distillation import kd_loss
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.engine import EngineParams
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


@dataclass(frozen=True)
class RoundCost:
    """What the trainings of a round cost in this process, one after the other, in seconds.

    Attributes:
        n: trainings.
        trainings: of all of them, once the teacher's outputs that they share exist.
        outputs: of these outputs.
    """

    n: int
    trainings: float
    outputs: float


def round_cost(costs: Sequence[TrainingCost], length: int) -> RoundCost:
    """Return what trainings of a length cost together."""
    trainings = 0.0
    outputs = 0.0
    for cost in costs:
        with_outputs = cost.seconds(length)
        without_outputs = cost.seconds(length, shares_outputs=True)
        trainings += without_outputs
        # Some trainings may share none.
        outputs = max(outputs, with_outputs - without_outputs)
    return RoundCost(len(costs), trainings, outputs)


class RoundPace:
    """How long the trainings of a round take with an engine.

    This process computes the teacher's outputs once, and keeps them for all rounds. The workers of
    an engine end with their round: each of them computes the outputs in every round, and all do so
    at the same time.

    How much trainings next to each other slow each other down is not known before the first round:
    until then, they are taken to need as long as one after the other. Afterwards it is what the
    round took.

    Args:
        engine: who trains.
        n_at_a_time: trainings next to each other.
        n_threads: CPU threads of a training; None: torch's choice.
    """

    def __init__(
        self, engine: EngineParams = LOCAL, n_at_a_time: int = 1, n_threads: int | None = None
    ) -> None:
        self.n_at_a_time = n_at_a_time
        self._engine = engine
        self._n_threads = n_threads
        # Seconds that a round took, by those that it would take if workers did not disturb each
        # other; None: no round is over.
        self._slowdown: float | None = None

    def is_local(self, n: int) -> bool:
        """Return whether this process makes a round of n trainings itself."""
        return is_local(self._engine, n)

    def seconds(self, cost: RoundCost, *, has_outputs: bool = False) -> float:
        """Return the seconds of a round.

        Args:
            cost: of the round.
            has_outputs: this process has the teacher's outputs, which are of no use to workers.
        """
        if self.is_local(cost.n):
            return cost.trainings if has_outputs else cost.trainings + cost.outputs
        if self._slowdown is None:
            return cost.trainings + self._outputs_seconds(cost)
        return self._slowdown * self._undisturbed_seconds(cost)

    def observe(self, cost: RoundCost, seconds: float) -> None:
        """Learn from a round; one that this process made itself teaches nothing.

        Args:
            cost: of the round.
            seconds: that it took.
        """
        if self.is_local(cost.n):
            return
        expected = self._undisturbed_seconds(cost)
        if expected > 0:
            self._slowdown = seconds / expected

    def _undisturbed_seconds(self, cost: RoundCost) -> float:
        """Return the seconds of a round if its trainings did not slow each other down."""
        n_in_a_row = math.ceil(cost.n / self.n_at_a_time)
        return cost.trainings * n_in_a_row / cost.n + self._outputs_seconds(cost)

    def _outputs_seconds(self, cost: RoundCost) -> float:
        """Return the seconds of the outputs, which all workers of a round compute at once.

        On a part of the CPUs that this process has used, they take longer in proportion.
        """
        n_workers = min(self.n_at_a_time, cost.n)
        used_here = min(self._n_threads or torch.get_num_threads(), n_own_cpus())
        of_worker = cpus_of_worker(self._engine, n_workers, self._n_threads)
        return cost.outputs * max(1.0, used_here / of_worker)


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
        pace: of the engine; None: this process makes one training after the other.

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


def next_length(
    costs: Sequence[Sequence[TrainingCost]],
    seconds: float,
    longest: int,
    pace: RoundPace | None = None,
) -> int | None:
    """Return what `affordable_length` does, for fewer rounds where not all of them fit.

    Returns:
        A number of updates, None where not even one round of the shortest trainings fits.
    """
    for n_rounds in range(len(costs), 0, -1):
        length = affordable_length(costs[:n_rounds], seconds, longest, pace)
        if length is not None:
            return length
    return None


def _seconds_of(costs: Sequence[Sequence[TrainingCost]], length: int, pace: RoundPace) -> float:
    total = 0.0
    has_outputs = False
    for position, of_round in enumerate(costs):
        cost = round_cost(of_round, length * 2**position)
        total += pace.seconds(cost, has_outputs=has_outputs)
        if pace.is_local(cost.n):
            has_outputs = True
    return total
