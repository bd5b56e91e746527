"""The best student that a limit of its cost allows: costs first, then short trainings."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product, zip_longest
from typing import Any

import pandas as pd

from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.devices import cpu_name
from pu_kd_pipeline.errors import InputError, first_line
from pu_kd_pipeline.evaluation import model_costs
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.comparison import ComparisonVariant
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.params.pilot import PRESENT
from pu_kd_pipeline.params.student_search import StudentFamily, StudentSearchParams
from pu_kd_pipeline.pilot.halving import (
    Candidates,
    Halving,
    Trial,
    measured_images,
)
from pu_kd_pipeline.pilot.inputs import TrialInputs
from pu_kd_pipeline.pilot.judgment import divergence_difference, surely_closer, trial_facts
from pu_kd_pipeline.pilot.trials import trials_of, trials_table
from pu_kd_pipeline.storage.yardstick import yardstick_facts

logger = logging.getLogger(__name__)

VERSION = 1
TEACHER = "teacher"
_MEGA = 1e6


@dataclass(frozen=True)
class Student:
    """A student that may be chosen.

    Attributes:
        name: in tables, unique.
        family: its key in the parameters.
        architecture: as in `distillation.student_architecture`.
        options: of the architecture.
    """

    name: str
    family: str
    architecture: str
    options: dict[str, Any]


def run_trials(inputs: TrialInputs, params: StudentSearchParams) -> pd.DataFrame:
    """Return the trials of a search, one row each; the `attrs` hold the students and their costs.

    All students learn from the images that the rule of the run draws. The student of the run is
    trained in every round, whether it keeps the limits or not.

    Args:
        inputs: images, teacher, and the blocks of the run.
        params: families, limits, rounds and time.

    Raises:
        InputError: no limit is set or no student keeps it, labels are missing, there are too few
            images, no student learns, the time is too short, or memory runs out.
    """
    started = time.perf_counter()
    if not params.limits:
        raise InputError(
            "student_search: there is no limit: set student_search.latency_ms, size_mb or mflops, "
            "such as --params=student_search.latency_ms=5"
        )
    inputs.check(params.key)
    blocks = inputs.blocks
    students = list(_students(params.families))
    facts, refused = _measured(inputs.teacher, students, blocks, params)
    fitting = [student for student in students if _keeps(facts.get(student.name), params.limits)]
    if not fitting:
        raise InputError(_nothing_fits(facts, params.limits))
    chosen = largest_of_each(fitting, facts, params.max_students)
    sample = inputs.draw_sample(params)
    measured = measured_images(inputs, sample, params)
    rule = blocks.subset_materialization.rule
    present_options = blocks.distillation.student_options
    variants = {
        student.name: ComparisonVariant(
            rule=rule, distillation=student_parameters(student, present_options)
        )
        for student in chosen
    }
    deadline = started + 60 * params.minutes
    candidates = Candidates(variants, controls={})
    outcome = Halving(inputs, sample, measured, candidates, params, deadline).run()
    table = trials_table(outcome.trials)
    table.attrs.update(
        version=VERSION,
        students=[asdict(student) for student in students],
        costs=facts,
        refused=refused,
        present=outcome.present,
        note=outcome.note,
        yardstick=yardstick_facts(measured),
        seconds=time.perf_counter() - started,
        hardware=cpu_name(),  # of the latencies
        n_sampled=len(sample.images),
        n_pool=len(inputs.pool_images),
    )
    return table


def judge_trials(
    table: pd.DataFrame, blocks: Blocks, params: StudentSearchParams
) -> dict[str, Any]:
    """Return what a search found, as JSON can hold it.

    The winner is the student closest to the teacher in the last round among those that keep the
    limits. Where the student of the run keeps them and is not surely further away, it stays.

    Args:
        table: result of `run_trials`.
        blocks: those of the run.
        params: the limits.

    Raises:
        InputError: the table is of another version, or no student keeps the limits.
    """
    facts: dict[str, Any] = {str(key): value for key, value in table.attrs.items()}
    if facts.get("version") != VERSION:
        raise InputError(
            "student_search_trials: another version wrote it: run "
            "`kedro run --pipeline=student_search`"
        )
    trials = trials_of(table)
    costs = facts["costs"]
    present = facts["present"]
    with_student = [trial for trial in trials if not trial.failure]
    # The last round in which a student that may be chosen has learned.
    rounds = [
        trial.round for trial in with_student if _keeps(costs[trial.candidate], params.limits)
    ]
    last = max(rounds, default=0)
    of_last = {trial.candidate: trial for trial in with_student if trial.round == last}
    keeping = [name for name in of_last if _keeps(costs[name], params.limits)]
    if not keeping:
        raise InputError(
            "student_search: no student that keeps the limits has learned: the log says why"
        )
    closest = min(keeping, key=lambda name: of_last[name].kl)
    winner = closest
    difference = None
    if closest != present and present in of_last:
        difference = divergence_difference(of_last[present], of_last[closest])
        if present in keeping and not surely_closer(trials, closest, present):
            winner = present
    parameters = {}
    if winner != present:
        student = next(one for one in _students_of(facts) if one.name == winner)
        parameters = {
            "distillation": student_parameters(student, blocks.distillation.student_options)
        }
    return {
        "version": VERSION,
        "limits": params.limits,
        "students": _student_rows(facts, costs, params, trials),
        "trials": [trial_facts(trial) for trial in trials],
        "winner": winner,
        "closest": closest,
        "present": present,
        "present_keeps_limits": _keeps(costs[present], params.limits),
        "difference_to_present": difference,
        "costs": costs,
        "parameters": parameters,
        **{
            key: facts[key]
            for key in ("note", "yardstick", "seconds", "hardware", "n_sampled", "n_pool")
        },
    }


def student_parameters(student: Student, present_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the block `distillation` that choose a student.

    Options of the present student that it does not have are null, which removes them.
    """
    removed = {name: None for name in present_options if name not in student.options}
    return {
        "student_architecture": student.architecture,
        "student_options": {**student.options, **removed},
    }


def _students(families: Mapping[str, StudentFamily | None]) -> Iterator[Student]:
    """Yield every combination of every family, each network once."""
    names = set()
    for family, members in families.items():
        if members is None:
            continue
        choices = {
            name: value if isinstance(value, list | tuple) else [value]
            for name, value in members.options.items()
        }
        for architecture in members.architectures:
            for values in product(*choices.values()):
                options = dict(zip(choices, values, strict=True))
                name = _name(architecture, options)
                if name not in names:
                    names.add(name)
                    yield Student(name, family, architecture, options)


def _students_of(facts: Mapping[str, Any]) -> list[Student]:
    return [Student(**values) for values in facts["students"]]


def _name(architecture: str, options: Mapping[str, Any]) -> str:
    parts = [architecture, *(f"{name} {value}" for name, value in options.items())]
    return ", ".join(parts)


def _measured(
    teacher: Model, students: Sequence[Student], blocks: Blocks, params: StudentSearchParams
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the costs of every network by name, and why some could not be built."""
    models = {TEACHER: teacher}
    refused = {}
    own = blocks.distillation
    models[PRESENT] = new_student(teacher, own.student_architecture, own.student_options, {})
    for student in students:
        try:
            models[student.name] = new_student(teacher, student.architecture, student.options, {})
        except InputError as exc:
            refused[student.name] = first_line(exc)
            logger.info("student_search: %s: %s", student.name, refused[student.name])
    costs = model_costs(
        models,
        EvaluationParams(latency_repeats=params.latency_repeats, compute=own.compute),
    )
    return dict(costs), refused


def _keeps(costs: Mapping[str, float] | None, limits: Mapping[str, float]) -> bool:
    if costs is None:
        return False
    return all(_cost(costs, name) <= limit for name, limit in limits.items())


def _cost(costs: Mapping[str, float], limit: str) -> float:
    """Return a cost in the unit of the limit."""
    if limit == "latency_ms":
        return costs["latency_ms"]
    key = {"size_mb": "size_bytes", "mflops": "flops"}[limit]
    return costs[key] / _MEGA


def _nothing_fits(costs: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    students = {name: cost for name, cost in costs.items() if name not in (TEACHER, PRESENT)}
    asked = ", ".join(f"{name} {limit:g}" for name, limit in limits.items())
    if not students:
        return (
            "student_search: no student of student_search.families can read the images: the log "
            "says why"
        )
    # By how much the worst of the limits is exceeded.
    cheapest = min(
        students,
        key=lambda name: max(_cost(students[name], each) / limits[each] for each in limits),
    )
    has = ", ".join(f"{name} {_cost(students[cheapest], name):.3g}" for name in limits)
    return (
        f"student_search: no student keeps {asked}; the closest one, {cheapest}, has {has}: raise "
        "the limit, or add smaller students to student_search.families"
    )


def largest_of_each(students: Sequence[Student], costs: Mapping[str, Any], n: int) -> list[Student]:
    """Return the students of the most FLOPs, of each family in turn, without dominated ones.

    A student is dominated by one that is as fast and has more parameters and more FLOPs.
    """
    by_family: dict[str, list[Student]] = {}
    for student in students:
        if not any(_dominates(costs[other.name], costs[student.name]) for other in students):
            by_family.setdefault(student.family, []).append(student)
    for family in by_family.values():
        family.sort(key=lambda student: costs[student.name]["flops"], reverse=True)
    turns = zip_longest(*by_family.values())
    ordered = [student for turn in turns for student in turn if student is not None]
    return ordered[:n]


def _dominates(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return (
        first["latency_ms"] <= second["latency_ms"]
        and first["flops"] > second["flops"]
        and first["parameters"] > second["parameters"]
    )


def _student_rows(
    facts: Mapping[str, Any],
    costs: Mapping[str, Any],
    params: StudentSearchParams,
    trials: Sequence[Trial],
) -> list[dict[str, Any]]:
    trained = {trial.candidate for trial in trials}
    rows = []
    for student in _students_of(facts):
        of_student = costs.get(student.name)
        rows.append(
            {
                **asdict(student),
                "costs": of_student,
                "keeps_limits": _keeps(of_student, params.limits),
                "is_trained": student.name in trained,
                "refused": facts["refused"].get(student.name),
            }
        )
    return rows
