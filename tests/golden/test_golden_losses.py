"""Seeded toy runs give the losses they gave before; see `golden_runs` for what is run.

After a change that is meant to move results, update the file from the project's root with

    .venv/bin/python -m tests.golden.golden_runs --write
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import pytest

from pu_kd_pipeline.params.distillation import CriticParams, DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from tests.golden.golden_numbers import GOLDEN_FILE, differences, read_golden
from tests.golden.golden_runs import (
    DISTILLATION_RUNS,
    NNPU_ASCENT_RUNS,
    NNPU_DESCENT_RUNS,
    PU_RUNS,
    RUNS,
    columns_of,
    tolerance_of,
)
from tests.golden.toy_inputs import ToyInputs

GOLDEN = read_golden()
UPDATE = "run `.venv/bin/python -m tests.golden.golden_runs --write` from the project's root"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyInputs:
    """The images, teacher and features that all runs share."""
    return ToyInputs(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("run", RUNS)
def test_a_seeded_run_gives_the_numbers_it_gave_before(toy: ToyInputs, run: str) -> None:
    assert run in GOLDEN, f"run {run!r} is not in {GOLDEN_FILE.name}: {UPDATE}"

    actual = columns_of(run, toy)
    found = differences(run, GOLDEN[run], actual, tolerance_of(run))
    if not found:
        return
    lines = [*found, f"If these numbers were meant to move: {UPDATE}"]
    # The traceback would only show this function.
    pytest.fail("\n".join(lines), pytrace=False)


def test_the_file_holds_no_run_that_is_gone() -> None:
    recorded = GOLDEN.keys()
    gone = sorted(recorded - RUNS.keys())
    assert not gone, f"{GOLDEN_FILE.name} holds {gone}, which nothing runs: {UPDATE}"


# --- every choice of the parameters has a run -----------------------------------------------------


def choices(block: type, field: str) -> set[str]:
    """Return the values that a parameter's type allows."""
    annotation = block.model_fields[field].annotation  # type: ignore[attr-defined]
    return set(get_args(annotation))


def check_all_have_a_run(what: str, known: set[str], used: Iterable[str]) -> None:
    """Fail with the names of the choices without a golden run."""
    assert known, f"the type of {what} lists no choices: has it moved?"
    without_run = known - set(used)
    missing = sorted(without_run)
    assert not missing, f"{what} {missing} have no golden run: add one in golden_runs.py"


def test_every_objective_has_a_run() -> None:
    known = choices(DistillationParams, "objective")
    used = [params.objective for params in DISTILLATION_RUNS.values()]
    check_all_have_a_run("objective", known, used)


def test_every_mode_of_the_critic_has_a_run() -> None:
    known = choices(CriticParams, "mode")
    used = set()
    for params in DISTILLATION_RUNS.values():
        # The block may be there without being used.
        if params.objective == "pu_critic" and params.critic is not None:
            used.add(params.critic.mode)
    check_all_have_a_run("critic mode", known, used)


def test_both_heads_of_latent_have_a_run() -> None:
    shared_heads = set()
    for params in DISTILLATION_RUNS.values():
        if params.objective == "latent" and params.latent is not None:
            shared_heads.add(params.latent.shared_head)

    assert shared_heads == {False, True}


def test_every_estimator_and_backbone_of_pu_training_has_a_run() -> None:
    known_estimators = choices(PUTrainingParams, "estimator")
    known_backbones = choices(PUTrainingParams, "backbone")
    estimators = [params.estimator for params in PU_RUNS.values()]
    backbones = [params.backbone for params in PU_RUNS.values()]

    check_all_have_a_run("estimator", known_estimators, estimators)
    check_all_have_a_run("backbone", known_backbones, backbones)


# --- the runs take the branches they are made for -------------------------------------------------
# These read the file: the runs above were compared with it.


@pytest.mark.parametrize("run", NNPU_DESCENT_RUNS)
def test_nnpu_takes_the_ordinary_branch_throughout(run: str) -> None:
    shares = GOLDEN[run]["ascent_share"]
    assert max(shares) == 0


@pytest.mark.parametrize("run", NNPU_ASCENT_RUNS)
def test_nnpu_takes_the_ascent_branch_in_some_updates(run: str) -> None:
    shares = GOLDEN[run]["ascent_share"]
    assert max(shares) > 0


@pytest.mark.parametrize("run", ["pu_critic_clamp", "pu_critic_ascent"])
def test_the_negative_risk_of_the_pu_critic_falls_below_zero_in_some_updates(run: str) -> None:
    shares = GOLDEN[run]["clamped_share"]
    assert max(shares) > 0
    assert min(shares) < 1


def test_the_modes_of_the_pu_critic_differ() -> None:
    # Where the negative risk never falls below zero, clamp and ascent are one.
    clamp = GOLDEN["pu_critic_clamp"]
    ascent = GOLDEN["pu_critic_ascent"]
    gan = GOLDEN["pu_critic_gan"]

    assert clamp["loss"] != ascent["loss"]
    assert max(gan["clamped_share"]) == 0
