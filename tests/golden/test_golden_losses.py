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

    found = differences(run, GOLDEN[run], columns_of(run, toy), tolerance_of(run))
    if found:
        advice = f"If these numbers were meant to move: {UPDATE}"
        pytest.fail("\n".join([*found, advice]), pytrace=False)


def test_the_file_holds_no_run_that_is_gone() -> None:
    gone = sorted(GOLDEN.keys() - RUNS.keys())
    assert not gone, f"{GOLDEN_FILE.name} holds {gone}, which nothing runs: {UPDATE}"


# --- every choice of the parameters has a run -----------------------------------------------------


def choices(block: type, field: str) -> set[str]:
    """Return the values that a parameter's type allows."""
    return set(get_args(block.model_fields[field].annotation))  # type: ignore[attr-defined]


def check_all_have_a_run(what: str, known: set[str], used: Iterable[str]) -> None:
    """Fail with the names of the choices without a golden run."""
    assert known, f"the type of {what} lists no choices: has it moved?"
    missing = sorted(known - set(used))
    assert not missing, f"{what} {missing} have no golden run: add one in golden_runs.py"


def test_every_objective_has_a_run() -> None:
    used = [params.objective for params in DISTILLATION_RUNS.values()]
    check_all_have_a_run("objective", choices(DistillationParams, "objective"), used)


def test_every_mode_of_the_critic_has_a_run() -> None:
    used = set()
    for params in DISTILLATION_RUNS.values():
        if params.objective == "pu_critic" and params.critic is not None:
            used.add(params.critic.mode)
    check_all_have_a_run("critic mode", choices(CriticParams, "mode"), used)


def test_both_heads_of_latent_have_a_run() -> None:
    shared_heads = set()
    for params in DISTILLATION_RUNS.values():
        if params.objective == "latent" and params.latent is not None:
            shared_heads.add(params.latent.shared_head)

    assert shared_heads == {False, True}


def test_every_estimator_and_backbone_of_pu_training_has_a_run() -> None:
    estimators = [params.estimator for params in PU_RUNS.values()]
    backbones = [params.backbone for params in PU_RUNS.values()]
    check_all_have_a_run("estimator", choices(PUTrainingParams, "estimator"), estimators)
    check_all_have_a_run("backbone", choices(PUTrainingParams, "backbone"), backbones)


# --- the runs take the branches they are made for -------------------------------------------------
# These read the file: the runs above were compared with it.


@pytest.mark.parametrize("run", NNPU_DESCENT_RUNS)
def test_nnpu_takes_the_ordinary_branch_throughout(run: str) -> None:
    assert max(GOLDEN[run]["ascent_share"]) == 0


@pytest.mark.parametrize("run", NNPU_ASCENT_RUNS)
def test_nnpu_takes_the_ascent_branch_in_some_updates(run: str) -> None:
    assert max(GOLDEN[run]["ascent_share"]) > 0


def test_the_negative_risk_of_the_pu_critic_falls_below_zero_in_some_updates() -> None:
    """Where it never does, the modes clamp and ascent are one."""
    for run in ("pu_critic_clamp", "pu_critic_ascent"):
        shares = GOLDEN[run]["clamped_share"]
        assert max(shares) > 0, run
        assert min(shares) < 1, run

    assert GOLDEN["pu_critic_clamp"]["loss"] != GOLDEN["pu_critic_ascent"]["loss"]
    assert max(GOLDEN["pu_critic_gan"]["clamped_share"]) == 0
