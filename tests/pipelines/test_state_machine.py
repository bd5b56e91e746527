"""Whatever happens between two runs of the real stages, the result is that of a run from nothing.

Hypothesis replaces images and weights by others of the same size and time, edits the code of the
user's network, damages any file of the data folder, and kills runs, in any order. PU_KD_STEPS sets
how many things happen.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.incremental.damage import DAMAGES, damage
from tests.pipelines.user_project import STAGES, StageRun, UserProject, contents

N_STEPS = int(os.environ.get("PU_KD_STEPS", "20"))
MAX_CHANGES_BETWEEN_RUNS = 4
POSITIONS = st.floats(0, 1, exclude_max=True)


def change(**arguments: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a method one of the things that may happen; after a few of them, a run has to follow."""

    def decorate(method: Callable[..., None]) -> Any:
        def counted(self: Stages, **values: Any) -> None:
            self.n_changes += 1
            method(self, **values)

        counted.__name__ = method.__name__
        is_allowed = precondition(lambda self: self.n_changes < MAX_CHANGES_BETWEEN_RUNS)
        return is_allowed(rule(**arguments)(counted))

    return decorate


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

    @change(factor=st.integers(1, 2))
    def edit_a_module_of_the_network(self, factor):
        self._project.edit_layers(factor)
        self._state["layers"] = factor

    @change(seed=st.integers(0, 1))
    def replace_the_weights(self, seed):
        self._project.write_weights(seed)
        self._state["weights"] = seed

    @change(number=st.integers(0, 2), seed=st.integers(0, 1))
    def replace_an_image(self, number, seed):
        self._project.replace_image(number, seed)
        self._state[f"image {number}"] = seed

    @change(seed=st.integers(0, 1))
    def change_the_seed(self, seed):
        self._project.seed = seed
        self._state["seed"] = seed

    @change(where=POSITIONS, place=POSITIONS, kind=st.sampled_from(DAMAGES))
    def damage_a_file(self, where, place, kind):
        damage(self._files(), where, place, kind)

    @change(where=POSITIONS, place=POSITIONS)
    def damage_a_file_and_lose_the_records(self, where, place):
        damage(self._files(), where, place, "flip")
        shutil.rmtree(self._project.data / "node_records", ignore_errors=True)

    @change(n_renames=st.integers(1, 60), force=st.booleans())
    def kill_a_run(self, n_renames, force):
        run = StageRun(self._project.data, force=force, kill_before=n_renames)
        exit_code = self._project.start(run)
        assert exit_code in (0, -9), self._project.log()

    @change(stage=st.sampled_from(STAGES))
    def run_one_stage(self, stage):
        run = StageRun(self._project.data, stages=(stage,))
        exit_code = self._project.start(run)
        # Its inputs may be missing or damaged: then it has to report that in a message.
        assert exit_code in (0, 1)
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

    def _files(self) -> list[Path]:
        found = self._project.data.rglob("*")
        return sorted(path for path in found if path.is_file() and path.suffix != ".lock")


@pytest.mark.slow
def test_stages_never_reuse_a_wrong_result():
    run_state_machine_as_test(
        Stages,
        settings=settings(
            max_examples=2,
            stateful_step_count=N_STEPS,
            # Shrinking would repeat the runs for minutes; the printed steps show the failure.
            phases=[Phase.explicit, Phase.generate],
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
