"""Candidates compared by short trainings: each round trains half of them, about twice as long.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943), with a schedule of its own for
every training, and with controls that stay in every round. Students are measured on the yardstick
of the sample, and on no test image.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pu_kd_pipeline import progress
from pu_kd_pipeline.comparison.cells import computes_of
from pu_kd_pipeline.comparison.computation import CellComputation
from pu_kd_pipeline.comparison.grid import Cell, make_cells
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.manifests import n_pool_images
from pu_kd_pipeline.comparison.pool_scores import ScoredPool
from pu_kd_pipeline.devices import arithmetic, prepare_device
from pu_kd_pipeline.engines.current import shared_folder
from pu_kd_pipeline.engines.shards import map_shards, n_workers_for
from pu_kd_pipeline.errors import InputError, UnavailableError, first_line
from pu_kd_pipeline.images.duplicates import excluded_images
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.images.yardstick import Yardstick, yardstick_logits
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.learning.yardstick import closeness, divergences
from pu_kd_pipeline.models.model import Model, load_model
from pu_kd_pipeline.params.comparison import ComparisonParams, ComparisonVariant, Overrides
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.pilot import PRESENT, HalvingParams
from pu_kd_pipeline.params.pu_training import AUDIT
from pu_kd_pipeline.pilot.costs import (
    RoundPace,
    TrainingCost,
    n_shared_views,
    next_length,
    round_cost,
    step_seconds,
)
from pu_kd_pipeline.pilot.forecast import peak_memory_bytes
from pu_kd_pipeline.pilot.inputs import TrialInputs, check_labeled
from pu_kd_pipeline.pilot.sample import PoolSample
from pu_kd_pipeline.provenance.factories import factory_digest
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.selection.yardstick import choose_yardstick
from pu_kd_pipeline.training.checkpoints import checkpoints_disabled

logger = logging.getLogger(__name__)


_FEWEST_MEASURED = 20  # images of a yardstick
_ENOUGH_MEASURED = 40
_LARGER_SHARES = (0.35, 0.5)  # of the related images, where the yardstick has fewer than enough


@dataclass(frozen=True)
class Trial:
    """A short training, and how close its student comes to the teacher.

    Attributes:
        candidate: its name.
        is_control: it stays in every round.
        round: from 1 on.
        n_updates: of the training.
        seconds: of selection and training.
        n_pool_images: that it learned from; 0 after a failure.
        size_source: where that number comes from, see `learning.selection_size`.
        failure: why there is no student; None: there is one.
        is_equal: (n,) whether student and teacher give an image of the yardstick the same class.
        divergence: (n,) KL divergence of its images in nats, after temperature scaling.
    """

    candidate: str
    is_control: bool
    round: int
    n_updates: int
    seconds: float
    n_pool_images: int
    size_source: str | None
    failure: str | None
    is_equal: NDArray[np.bool_]
    divergence: NDArray[np.float64]

    @property
    def agreement(self) -> float:
        """Share of the images that both give the same class; nan after a failure."""
        return float(self.is_equal.mean()) if self.failure is None else float("nan")

    @property
    def kl(self) -> float:
        """Mean divergence in nats; infinite after a failure."""
        return float(self.divergence.mean()) if self.failure is None else float("inf")


@dataclass(frozen=True)
class Candidates:
    """What is compared.

    Attributes:
        variants: name -> variant, of which each round keeps half.
        controls: name -> variant, which every round has.
    """

    variants: Mapping[str, ComparisonVariant]
    controls: Mapping[str, ComparisonVariant]


@dataclass(frozen=True)
class Outcome:
    """The trials of all rounds, and what was learned about the time.

    Attributes:
        trials: in order.
        present: the candidate with the parameters of the run, which every round has.
        yardstick: what the students were measured on.
        step_seconds: candidate -> of an update without the teacher.
        pool: the scores of the sample, of a candidate that trains a PU classifier; None without.
        note: what differs from a full run, or why there are fewer rounds than asked for.
        n_at_a_time: trainings next to each other.
        peak_bytes: most memory of a process that trained, besides this one; 0: there is none.
        cpu_seconds: of these processes, for all trainings.
    """

    trials: list[Trial]
    present: str
    yardstick: Yardstick
    step_seconds: dict[str, float]
    pool: ScoredPool | None
    note: str | None
    n_at_a_time: int = 1
    peak_bytes: int = 0
    cpu_seconds: float = 0.0


def measured_images(inputs: TrialInputs, sample: PoolSample, params: HalvingParams) -> pd.DataFrame:
    """Return the yardstick of a sample, see `selection.yardstick.choose_yardstick`.

    Where it would be small, it takes more of the related images than the parameters say, up to a
    half of them.

    Raises:
        InputError: there are too few images that could be measured on.
    """
    if not inputs.yardstick.n_images:
        raise InputError(
            f"{params.key}: yardstick.n_images is 0, and students could not be measured: raise it"
        )
    table = pd.DataFrame()
    for share in (params.yardstick_share, *_LARGER_SHARES):
        if len(table) >= _ENOUGH_MEASURED or share < params.yardstick_share:
            continue
        drawn = {"max_share": share, "seed": params.seed}
        table = choose_yardstick(
            inputs.labeled_images,
            sample.images,
            inputs.labeled_features,
            sample.features,
            inputs.teacher,
            inputs.duplicates,
            inputs.yardstick.model_copy(update=drawn),
        )
    if len(table) < _FEWEST_MEASURED:
        raise InputError(
            f"{params.key}: students would be measured on {len(table)} images, and fewer than "
            f"{_FEWEST_MEASURED} tell nothing: raise {params.key}.max_pool_images, "
            f"{params.key}.minutes, yardstick.n_images or yardstick.uniform_share, or use a larger "
            "pool"
        )
    return table


@dataclass(frozen=True)
class TrainedTrial:
    """A trial, and what it took of the process that trained it.

    Attributes:
        trial: the trial.
        process: its number.
        peak_bytes: most memory that the process had until then.
        cpu_seconds: that the training took.
    """

    trial: Trial
    process: int
    peak_bytes: int
    cpu_seconds: float


@dataclass(frozen=True)
class TrialCell:
    """A training of a round.

    Attributes:
        cell: the cell.
        round: from 1 on.
        is_control: it stays in every round.
    """

    cell: Cell
    round: int
    is_control: bool


@dataclass(frozen=True)
class TrialWork:
    """Trains students and measures them.

    Attributes:
        computation: what the trainings in a process share.
        yardstick: what the students are measured on.
        compute: where they are measured.
        computes: devices and number formats of the networks that are trained.
        architectures: of the students.
    """

    computation: CellComputation
    yardstick: Yardstick
    compute: ComputeParams
    computes: tuple[ComputeParams, ...]
    architectures: tuple[str, ...]

    def __call__(self, name: str, argument: TrialCell) -> TrainedTrial:
        """Return the trial of a cell, and report it to the log."""
        cpu_started = time.process_time()
        with progress.part(name) as report:
            trial = self._trial(argument)
            outcome = trial.failure
            if outcome is None:
                outcome = f"agreement {100 * trial.agreement:.1f} %, KL {trial.kl:.4f}"
            report(outcome)
        cpu_seconds = time.process_time() - cpu_started
        return TrainedTrial(trial, os.getpid(), peak_memory_bytes(), cpu_seconds)

    def facts(self) -> Mapping[str, str]:
        """Return what decides the results of all trials, besides their inputs."""
        devices = [arithmetic(compute, prepare_device(compute)) for compute in self.computes]
        return {
            "teacher": self.computation.teacher_fingerprint,
            "device or number format": ", ".join(devices),
            "code or libraries": maker_fingerprint(TrialWork, load_model),
            "students' code": " ".join(map(factory_digest, self.architectures)),
        }

    def _trial(self, argument: TrialCell) -> Trial:
        cell = argument.cell
        started = time.perf_counter()
        failure = None
        n_pool = 0
        size_source = None
        is_equal = np.empty(0, dtype=np.bool_)
        divergence = np.empty(0)
        try:
            with progress.records.muted(), checkpoints_disabled():
                learned = self.computation.learn(cell)
            n_pool = n_pool_images(learned.manifest)
            size_source = learned.manifest.attrs.get("size_source")
            is_equal, divergence = self._measure(learned.student)
        except UnavailableError:
            # It says nothing about the candidate: the next run may not meet it.
            raise
        except (ValueError, FloatingPointError) as exc:  # InputError is a ValueError
            failure = first_line(exc)
        return Trial(
            candidate=cell.variant,
            is_control=argument.is_control,
            round=argument.round,
            n_updates=cell.blocks.distillation.n_updates,
            seconds=time.perf_counter() - started,
            n_pool_images=n_pool,
            size_source=size_source,
            failure=failure,
            is_equal=is_equal,
            divergence=divergence,
        )

    def _measure(self, student: Model) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        teacher, student_logits = yardstick_logits(student, self.yardstick, self.compute)
        factor = closeness(teacher, student_logits).factor
        is_equal = teacher.argmax(dim=1) == student_logits.argmax(dim=1)
        return is_equal.numpy(), divergences(teacher, student_logits, factor).numpy()


@contextmanager
def _work_folder() -> Iterator[Path]:
    """Yield a folder for what workers are started with.

    No other run uses it, all machines of a cluster see it, and what a killed run leaves there is
    removed by the next one. Outside of Kedro it is a temporary folder of this machine.
    """
    with shared_folder() as folder:
        if folder is not None:
            yield folder
            return
    with TemporaryDirectory(prefix="pilot-") as name:
        yield Path(name)


class Halving:
    """Trains candidates round by round.

    Whatever a forecast needs, such as the time of an update, is measured before the rounds, in this
    process and next to no training.

    Args:
        inputs: what the trainings read.
        sample: of the pool.
        measured: the images that students are measured on, see `measured_images`.
        candidates: what is compared.
        params: rounds and time.
        deadline: of the last training, as `time.perf_counter` counts.

    Raises:
        InputError: a candidate cannot be made.
    """

    def __init__(
        self,
        inputs: TrialInputs,
        sample: PoolSample,
        measured: pd.DataFrame,
        candidates: Candidates,
        params: HalvingParams,
        deadline: float,
    ) -> None:
        blocks = inputs.blocks
        n_updates = blocks.distillation.n_updates
        if params.lengths is not None and params.lengths[-1] > n_updates:
            raise InputError(
                f"{params.key}.lengths: {params.lengths[-1]:,} updates are more than the "
                f"{n_updates:,} of distillation.n_updates: lower the one or raise the other"
            )
        self._teacher = inputs.teacher
        self._sample = sample
        self._n_pool = len(inputs.pool_images)
        self._blocks = blocks
        self._controls = candidates.controls
        self._variants = dict(candidates.variants)
        self._params = params
        self._deadline = deadline
        self._compute = blocks.distillation.compute
        labeled = inputs.labeled_images
        self._yardstick = Yardstick(measured, {"labeled": labeled, "pool": sample.images})
        of_cells = ComparisonInputs(
            inputs.teacher,
            labeled,
            sample.images,
            inputs.test_images,
            ImageSubset.of(labeled, np.empty(0, dtype=np.int64)),
            inputs.labeled_features,
            sample.features,
            excluded=excluded_images(inputs.duplicates, blocks.subset_materialization, measured),
            yardstick=self._yardstick,
        ).without_excluded()
        self._n_labeled = len(of_cells.labeled_images)
        check_labeled(of_cells.labeled_images, params.key)
        counts = of_cells.labeled_images.index["label"].value_counts()
        # As many of each class as the largest has: all of them are drawn.
        self._per_class = int(counts.max())
        # A PU classifier takes longer than short trainings: none is trained again by a worker.
        self._computation = CellComputation(
            of_cells,
            hint_share=0.5,
            has_short_trainings=n_shared_views(blocks.distillation) > 0,
            sends_scores=True,
        )
        self._present = self._find_present()
        self._engine = inputs.engine
        self._pace = RoundPace()
        self._peak_bytes = 0
        self._cpu_seconds = 0.0

    def run(self) -> Outcome:
        """Return the trials of all rounds.

        Raises:
            InputError: no candidate has a student, or the time is too short for any.
            UnavailableError: memory runs out, images cannot be read now, or the engine fails.
        """
        names = [name for name in self._variants if name != self._present]
        n_trainings = len(self.cells(names, self._blocks.distillation.n_updates))
        # Before anything is measured: a Ray cluster is started here.
        n_at_a_time = n_workers_for(self._engine, n_trainings)
        self._pace = RoundPace(self._engine, n_at_a_time, self._compute.n_threads)
        # Before the time is divided: candidates share it.
        pool = self._score_pool(names)
        steps = self._step_seconds(names)
        trials: list[Trial] = []
        notes = []
        previous = 0
        for number in range(1, self._params.n_rounds + 1):
            length = self._length(names, number, steps)
            if length is None:
                notes.append(
                    f"The time was over after {number - 1} of {self._params.n_rounds} rounds: "
                    f"raise {self._params.key}.minutes for more."
                )
                break
            if length <= previous:
                notes.append(
                    f"There are {number - 1} of {self._params.n_rounds} rounds, because the next "
                    "one would not be longer: the full training or the time is too short."
                )
                break
            of_round = self._round(names, number, length, steps)
            previous = length
            candidates = [trial for trial in of_round if not trial.is_control]
            with_student = [trial for trial in candidates if trial.failure is None]
            if not with_student and not trials:
                raise InputError(
                    f"{self._params.key}: no candidate has a student. {candidates[0].failure}"
                )
            if not with_student:
                notes.append(
                    f"In round {number} no candidate has a student: {candidates[0].failure}. The "
                    "rounds before count."
                )
                break
            trials += of_round
            ranking = [trial for trial in with_student if trial.candidate != self._present]
            ranking.sort(key=lambda trial: trial.kl)
            n_kept = self._n_after(number, len(ranking))
            names = [trial.candidate for trial in ranking[:n_kept]]
        if not trials:
            raise InputError(self._too_short(n_trainings))
        nearly_all = self._keeping_nearly_all(trials)
        if nearly_all:
            notes.append(
                f"With its budget, {' and '.join(nearly_all)} kept more than half of the "
                f"{len(self._sample.images):,} sampled images, and a smaller part of the whole "
                f"pool: raise {self._params.key}.max_pool_images and {self._params.key}.minutes "
                "to see what choosing so many is worth."
            )
        if self._blocks.pu_training.class_prior == AUDIT:
            notes.append(
                "The class prior was estimated on the sample: that of the audit is of the whole "
                "pool, and the full run uses it."
            )
        note = " ".join(notes) or None
        return Outcome(
            trials,
            self._present,
            self._yardstick,
            steps,
            pool,
            note,
            self._pace.n_at_a_time,
            self._peak_bytes,
            self._cpu_seconds,
        )

    def _too_short(self, n_trainings: int) -> str:
        """Return the message where the time is over before a round of trainings."""
        key = self._params.key
        message = (
            f"{key}: {self._params.minutes:g} minutes are too short for a single round: raise "
            f"{key}.minutes, or lower {key}.max_pool_images"
        )
        if self._pace.is_local(n_trainings) or not n_shared_views(self._blocks.distillation):
            return message
        return (
            f"{message}. With engine.kind {self._engine.kind}, each worker computes the teacher's "
            "outputs in every round; with local they are computed once"
        )

    def _keeping_nearly_all(self, trials: Sequence[Trial]) -> list[str]:
        """Return candidates that hardly choose in the sample, but do in the larger pool."""
        n_sampled = len(self._sample.images)
        if n_sampled == self._n_pool:
            return []
        cells = self._cells_of(self._variants, self._blocks.distillation.n_updates)
        return [
            trial.candidate
            for trial in trials
            if trial.round == 1
            and trial.candidate in cells
            and cells[trial.candidate].blocks.subset_materialization.budget is not None
            and trial.n_pool_images > n_sampled / 2
        ]

    def _find_present(self) -> str:
        """Return the candidate that changes no parameter of the run; it is added if there is none.

        Raises:
            InputError: a candidate sets what the blocks refuse.
        """
        n_updates = self._blocks.distillation.n_updates
        own = ComparisonVariant(rule=self._blocks.subset_materialization.rule)
        present = self._cells_of({PRESENT: own}, n_updates)[PRESENT]
        for name, cell in self._cells_of(self._variants, n_updates).items():
            if cell.blocks == present.blocks:
                return name
        self._variants[PRESENT] = own
        return PRESENT

    def _n_after(self, number: int, n: int) -> int:
        """Return how many of n candidates stay after a round."""
        is_before_last = number == self._params.n_rounds - 1
        return 1 if is_before_last else max(1, n // 2)

    def cells(self, names: Sequence[str], length: int) -> dict[str, Cell]:
        """Return the trainings of a round by name: of some candidates, and those it always has."""
        variants = {name: self._variants[name] for name in (*names, self._present)}
        return self._cells_of({**variants, **self._controls}, length)

    def _cells_of(self, variants: Mapping[str, ComparisonVariant], length: int) -> dict[str, Cell]:
        distillation = self._blocks.distillation.model_copy(
            update={"record_every": length, "keep": "last"}
        )
        params = ComparisonParams(
            title="pilot",
            labeled_per_class=(self._per_class,),
            seeds=(self._params.seed,),
            objectives=(distillation.objective,),
            n_updates=(length,),
            hint_share=0.5,
            every_variant=Overrides(pu_training=self._without_folds()),
            variants=variants,
            sweeps={},
        )
        blocks = replace(self._blocks, distillation=distillation)
        cells = make_cells(params, blocks, key=f"{self._params.key}.candidates")
        return {cell.variant: cell for cell in cells}

    def _without_folds(self) -> dict[str, Any]:
        """Return what saves the held-out folds, where no candidate cuts by them."""
        criteria: set[Any] = {self._blocks.subset_materialization.criterion}
        for variant in self._variants.values():
            criteria.add(variant.criterion)
            criteria.add(variant.subset_materialization.get("criterion"))
        if any(name in CRITERIA and CRITERIA[name].needs_held_out_ranks for name in criteria):
            return {}
        return {"held_out_folds": 0}

    def _score_pool(self, names: Sequence[str]) -> ScoredPool | None:
        """Score the sample for every candidate; return the scores of one with a PU classifier."""
        found = None
        for cell in self.cells(names, self._blocks.distillation.n_updates).values():
            try:
                pool = self._computation.scored_pool(cell)
            except UnavailableError:
                raise  # as from a trial
            except InputError:
                continue  # its trial reports it
            if pool is not None and pool.seconds is not None and found is None:
                found = pool
        return found

    def _step_seconds(self, names: Sequence[str]) -> dict[str, float]:
        cells = self.cells(names, self._blocks.distillation.n_updates)
        seconds = {}
        measured: dict[tuple[str, str, int], float] = {}
        for name, cell in cells.items():
            params = cell.blocks.distillation
            key = (params.student_architecture, str(params.student_options), params.batch_size)
            if key not in measured:
                measured[key] = step_seconds(self._teacher, params)
            seconds[name] = measured[key]
        return seconds

    def _length(self, names: Sequence[str], number: int, steps: Mapping[str, float]) -> int | None:
        if self._params.lengths is not None:
            return self._params.lengths[number - 1]
        rounds = []
        n = len(names)
        for later in range(number, self._params.n_rounds + 1):
            # Which of them stay is not known yet: the most expensive ones are assumed.
            by_cost = sorted(names, key=lambda name: steps[name], reverse=True)
            rounds.append(self._costs(by_cost[:n], steps))
            n = self._n_after(later, n)
        left = self._deadline - time.perf_counter()
        longest = self._blocks.distillation.n_updates
        return next_length(rounds, left, longest, self._pace)

    def _costs(self, names: Sequence[str], steps: Mapping[str, float]) -> list[TrainingCost]:
        cells = self.cells(names, self._blocks.distillation.n_updates)
        n_images = len(self._sample.images) + self._n_labeled
        return [
            TrainingCost(
                cell.blocks.distillation,
                n_images,
                steps[name],
                self._sample.pace.network,
                is_for_many=True,
            )
            for name, cell in cells.items()
        ]

    def _round(
        self, names: Sequence[str], number: int, length: int, steps: Mapping[str, float]
    ) -> list[Trial]:
        cells = self.cells(names, length)
        logger.info(
            "%s: round %d of %d, %d trainings of %s updates",
            self._params.key,
            number,
            self._params.n_rounds,
            len(cells),
            f"{length:,}",
        )
        placed = {}
        for name, cell in cells.items():
            is_control = cell.variant in self._controls
            placed[f"{self._params.key}: {name}"] = TrialCell(cell, number, is_control)
        started = time.perf_counter()
        trained: dict[str, TrainedTrial] = {}
        work = self._work(list(cells.values()))
        with (
            _work_folder() as folder,
            closing(map_shards(work, placed, self._engine, folder)) as results,
        ):
            for name, found in results:
                trained[name] = found
        cost = round_cost(self._costs(names, steps), length)
        self._pace.observe(cost, time.perf_counter() - started)
        for found in trained.values():
            # The memory of this process is known anyway, and what it did was measured.
            if found.process != os.getpid():
                self._peak_bytes = max(self._peak_bytes, found.peak_bytes)
                self._cpu_seconds += found.cpu_seconds
        return [trained[name].trial for name in placed]

    def _work(self, cells: Sequence[Cell]) -> TrialWork:
        # A model of pydantic cannot be in a set.
        computes: dict[str, ComputeParams] = {}
        for cell in cells:
            for compute in computes_of(cell):
                computes[compute.model_dump_json()] = compute
        architectures = {cell.blocks.distillation.student_architecture for cell in cells}
        return TrialWork(
            self._computation,
            self._yardstick,
            self._compute,
            tuple(computes.values()),
            tuple(sorted(architectures)),
        )
