"""Whatever happens between two runs of the real stages, the result is that of a run from nothing.

Hypothesis replaces images and weights by others of the same size and time, edits the code of the
user's network, damages any file of the data folder, and kills runs, in any order. PU_KD_STEPS sets
how many things happen.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from pu_kd_pipeline.errors import ExitCode
from tests.incremental.damage import (
    DAMAGES,
    POSITIONS,
    damage,
    files_to_damage,
    is_change_allowed,
    random_runs,
)
from tests.pipelines.user_project import STAGES, StageRun, UserProject, contents

N_STEPS = int(os.environ.get("PU_KD_STEPS", "20"))


class Stages(RuleBasedStateMachine):
    """One project of a user and its data folder."""

    def __init__(self) -> None:
        super().__init__()
        self.n_changes = 0
        self._folder = Path(tempfile.mkdtemp())
        self._project = UserProject(self._folder)
        # What decides a result: its values now, and results of runs from nothing by value.
        self._state: dict[str, int] = {"layers": 1, "weights": 0, "seed": 0}
        self._expected: dict[tuple[Any, ...], dict[str, Any]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self._folder)

    @precondition(is_change_allowed)
    @rule(factor=st.integers(1, 2))
    def edit_a_module_of_the_network(self, factor):
        self.n_changes += 1
        self._project.edit_layers(factor)
        self._state["layers"] = factor

    @precondition(is_change_allowed)
    @rule(seed=st.integers(0, 1))
    def replace_the_weights(self, seed):
        self.n_changes += 1
        self._project.write_weights(seed)
        self._state["weights"] = seed

    @precondition(is_change_allowed)
    @rule(number=st.integers(0, 2), seed=st.integers(0, 1))
    def replace_an_image(self, number, seed):
        self.n_changes += 1
        self._project.replace_image(number, seed)
        self._state[f"image {number}"] = seed

    @precondition(is_change_allowed)
    @rule(seed=st.integers(0, 1))
    def change_the_seed(self, seed):
        self.n_changes += 1
        self._project.seed = seed
        self._state["seed"] = seed

    @precondition(is_change_allowed)
    @rule(where=POSITIONS, place=POSITIONS, kind=st.sampled_from(DAMAGES))
    def damage_a_file(self, where, place, kind):
        self.n_changes += 1
        damage(files_to_damage(self._project.data), where, place, kind)

    @precondition(is_change_allowed)
    @rule(where=POSITIONS, place=POSITIONS)
    def damage_a_file_and_lose_the_records(self, where, place):
        self.n_changes += 1
        damage(files_to_damage(self._project.data), where, place, "flip")
        shutil.rmtree(self._project.data / "node_records", ignore_errors=True)

    @precondition(is_change_allowed)
    @rule(n_renames=st.integers(1, 60), force=st.booleans())
    def kill_a_run(self, n_renames, force):
        self.n_changes += 1
        run = StageRun(self._project.data, force=force, kill_before=n_renames)
        exit_code = self._project.start(run)
        assert exit_code in (0, -9), self._project.log()

    @precondition(is_change_allowed)
    @rule(stage=st.sampled_from(STAGES))
    def run_one_stage(self, stage):
        self.n_changes += 1
        run = StageRun(self._project.data, stages=(stage,))
        exit_code = self._project.start(run)
        # Its inputs may be missing or damaged: then it has to report that in a message.
        assert exit_code in (ExitCode.SUCCESS, ExitCode.USER_ERROR)
        log = self._project.log()
        assert "Traceback" not in log
        assert exit_code == 0 or "Error:" in log

    @rule(force=st.booleans())
    def run(self, force):
        self.n_changes = 0
        exit_code = self._project.start(StageRun(self._project.data, force=force))
        assert exit_code == 0, self._project.log()
        assert contents(self._project.data) == self._from_nothing()
        exit_code = self._project.start(StageRun(self._project.data))
        assert exit_code == 0
        assert "Nothing to do" in self._project.log()

    def _from_nothing(self) -> dict[str, Any]:
        """Return the results of a run in an empty data folder."""
        state = tuple(sorted(self._state.items()))
        if state not in self._expected:
            fresh = self._folder / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            exit_code = self._project.start(StageRun(fresh))
            assert exit_code == 0, self._project.log()
            self._expected[state] = contents(fresh)
        return self._expected[state]


@pytest.mark.slow
def test_stages_never_reuse_a_wrong_result():
    run_state_machine_as_test(Stages, settings=random_runs(N_STEPS, n_examples=2))
