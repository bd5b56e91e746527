"""A pilot from images to a recommendation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel

from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.devices import hardware_name
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.selection_size import BUDGET
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.params.overrides import with_overrides
from pu_kd_pipeline.params.pilot import CONTROLS, ORACLE, PilotParams
from pu_kd_pipeline.pilot.forecast import MeasuredCosts, forecast_run, peak_memory_bytes
from pu_kd_pipeline.pilot.halving import (
    Candidates,
    Halving,
    Outcome,
    Trial,
    measured_images,
)
from pu_kd_pipeline.pilot.inputs import TrialInputs
from pu_kd_pipeline.pilot.judgment import (
    RULES_OF_CONTROLS,
    Judgment,
    recommended_parameters,
    trial_facts,
)
from pu_kd_pipeline.pilot.sample import PoolSample
from pu_kd_pipeline.pilot.trials import trials_of, trials_table
from pu_kd_pipeline.storage.yardstick import yardstick_facts

VERSION = 2
T = TypeVar("T", bound=BaseModel)

# What was measured next to the trials, and is shown as it is.
_SHOWN = (
    "present",
    "yardstick",
    "note",
    "minutes",
    "seconds",
    "cpu_seconds",
    "trainings_at_a_time",
    "hardware",
    "step_seconds",
)


def run_trials(inputs: TrialInputs, params: PilotParams) -> pd.DataFrame:
    """Return the trials of a pilot, one row each; the `attrs` hold what was measured on the way.

    The columns are the fields of `halving.Trial`.

    Args:
        inputs: images, teacher, and the blocks that candidates override.
        params: candidates, rounds and time.

    Raises:
        InputError: labels are missing, there are too few images, no candidate has a student, the
            time is too short, or memory runs out.
    """
    started = time.perf_counter()
    cpu_started = time.process_time()
    inputs.check(params.key)
    teacher = inputs.teacher
    sample = inputs.draw_sample(params)
    candidates = Candidates(params.chosen, controls_of(sample))
    measured = measured_images(inputs, sample, params)
    deadline = started + 60 * params.minutes
    outcome = Halving(inputs, sample, measured, candidates, params, deadline).run()
    table = trials_table(outcome.trials)
    n_images = (len(inputs.pool_images), len(inputs.labeled_images), len(inputs.test_images))
    table.attrs.update(
        version=VERSION,
        costs=asdict(_costs(sample, outcome, n_images)),
        step_seconds=outcome.step_seconds,
        yardstick=yardstick_facts(outcome.yardstick.table),
        present=outcome.present,
        note=outcome.note,
        minutes=params.minutes,
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu_started + outcome.cpu_seconds,
        trainings_at_a_time=outcome.n_at_a_time,
        hardware=hardware_name(inputs.blocks.distillation.compute),
        n_classes=teacher.n_classes,
        teacher=teacher.fingerprint(),
    )
    return table


def judge_trials(table: pd.DataFrame, blocks: Blocks, params: PilotParams) -> dict[str, Any]:
    """Return what a pilot found, as JSON can hold it.

    Args:
        table: result of `run_trials`.
        blocks: those of the full run.
        params: the candidates.

    Raises:
        InputError: the table is of another version.
    """
    facts = table.attrs
    if facts.get("version") != VERSION:
        raise InputError("pilot_trials: another version wrote it: run `kedro run --pipeline=pilot`")
    trials = trials_of(table)
    n_updates = blocks.distillation.n_updates
    judged = Judgment(trials, facts["present"], n_updates, params.least_gain).facts()
    rule = RULES_OF_CONTROLS.get(judged["recommended"])
    if rule == blocks.subset_materialization.rule:
        # The run has the rule of that control already.
        judged["recommended"] = facts["present"]
    recommended = recommended_parameters(judged["recommended"], facts["present"], params.chosen)
    step = facts["step_seconds"].get(judged["recommended"], facts["costs"]["step"])
    costs = replace(MeasuredCosts(**facts["costs"]), step=step)
    distillation = _with(blocks.distillation, recommended.get("distillation", {}))
    pu_training = _with(blocks.pu_training, recommended.get("pu_training", {}))
    n_selected = _n_selected(trials, judged["recommended"], costs, n_updates)
    return {
        "version": VERSION,
        **{key: facts[key] for key in _SHOWN},
        "costs": facts["costs"],
        "trials": [trial_facts(trial) for trial in trials],
        "judgment": judged,
        "parameters": recommended,
        "forecast": forecast_run(costs, n_selected, facts["n_classes"], distillation, pu_training),
    }


def parameters_as_yaml(parameters: Mapping[str, Any]) -> str:
    """Return parameters as a file of an environment has them; empty where there are none."""
    if not parameters:
        return ""
    text: str = yaml.safe_dump(dict(parameters), sort_keys=False)
    return text


def command_with(parameters: Mapping[str, Any], environment: str | None = None) -> str:
    """Return the command that runs the pipeline `full` with some parameters."""
    command = "kedro run --pipeline=full"
    if environment is not None:
        command += f" --env={environment}"
    options = []
    for key, value in flatten(parameters, expand_lists=False):
        text = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
        options.append(f"{key}={text}")
    if not options:
        return command
    joined = ",".join(options)
    return f'{command} --params="{joined}"'


def controls_of(sample: PoolSample) -> dict[str, Any]:
    """Return the controls that the sample allows: the oracle needs the truth."""
    controls = dict(CONTROLS)
    relevant = sample.images.index["relevant"]
    if relevant.isna().any() or not relevant.astype(bool).any():
        del controls[ORACLE]
    return controls


def _costs(sample: PoolSample, outcome: Outcome, n_images: tuple[int, int, int]) -> MeasuredCosts:
    n_pool, n_labeled, n_test = n_images
    n_sampled = len(sample.images)
    prior = None
    classifier = None
    if outcome.pool is not None and outcome.pool.seconds is not None:
        prior = outcome.pool.prior_seconds or 0.0
        classifier = outcome.pool.seconds - prior
    table = next(sample.features.shards(["descriptor", "logits"]))
    return MeasuredCosts(
        n_pool=n_pool,
        n_sampled=n_sampled,
        n_labeled=n_labeled,
        n_test=n_test,
        reading=sample.pace.reading,
        teacher=sample.pace.teacher,
        prior=prior,
        classifier=classifier,
        step=float(np.median(list(outcome.step_seconds.values()))),
        feature_bytes=table.nbytes // n_sampled,
        pixel_bytes=math.prod(sample.images.image_shape),
        # Trainings may have been in other processes.
        peak_bytes=max(peak_memory_bytes(), outcome.peak_bytes),
    )


def _with(block: T, overrides: Mapping[str, Any]) -> T:
    values = with_overrides(block.model_dump(), overrides)
    return type(block).model_validate(values)


def _n_selected(trials: list[Trial], name: str, costs: MeasuredCosts, n_updates: int) -> int:
    """Return how many pool images the full run of a candidate learns from.

    A budget stays what it is; a number of showings grows with the training, and what a rule cuts by
    itself with the pool.
    """
    last = [trial for trial in trials if trial.candidate == name and trial.failure is None][-1]
    source = last.size_source or ""
    growth = costs.n_pool / costs.n_sampled
    if source == BUDGET:
        growth = 1.0
    elif source.endswith("showings"):
        growth = n_updates / last.n_updates
    return min(costs.n_pool, round(last.n_pool_images * growth))
