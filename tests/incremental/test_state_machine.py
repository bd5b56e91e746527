"""Whatever happens between two runs, a finished run has the results of a run from nothing.

Hypothesis edits parameters, code and files, damages outputs and records, restores old data folders
and kills runs, in any order. PU_KD_STEPS sets how many things happen to one project.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.incremental.damage import (
    DAMAGES,
    POSITIONS,
    damage,
    files_to_damage,
    is_change_allowed,
    random_runs,
)
from tests.incremental.edited_project import EditedProject, Request
from tests.incremental.projects import planned_lines

N_STEPS = int(os.environ.get("PU_KD_STEPS", "60"))


class Runs(RuleBasedStateMachine):
    """One project and its data folder."""

    def __init__(self) -> None:
        super().__init__()
        self.n_changes = 0
        self._folder = Path(tempfile.mkdtemp())
        self._project = EditedProject(self._folder)
        self._backup = self._folder / "backup"
        # What an edit decides -> the results of a run from nothing.
        self._expected: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._edits: dict[str, Any] = {"helpers": 2, "divisor": 2, "file": 5}

    def teardown(self) -> None:
        shutil.rmtree(self._folder)

    # --- edits

    @precondition(is_change_allowed)
    @rule(number=st.integers(1, 3))
    def change_a_parameter(self, number):
        self.n_changes += 1
        self._project.number = number

    @precondition(is_change_allowed)
    @rule(factor=st.sampled_from([1, 1.0, True, 2]))
    def change_the_type_of_a_parameter(self, factor):
        self.n_changes += 1
        self._project.factor = factor

    @precondition(is_change_allowed)
    @rule(factor=st.integers(2, 4))
    def edit_a_helper(self, factor):
        self.n_changes += 1
        self._project.edit_helpers(factor)
        self._edits["helpers"] = factor

    @precondition(is_change_allowed)
    @rule(divisor=st.sampled_from([2, 3]), comment=st.sampled_from(["", "another comment"]))
    def edit_a_node(self, divisor, comment):
        self.n_changes += 1
        self._project.edit_nodes(comment, divisor)
        self._edits["divisor"] = divisor

    @precondition(is_change_allowed)
    @rule(number=st.integers(5, 7))
    def edit_the_file_that_a_parameter_names(self, number):
        self.n_changes += 1
        self._project.edit_file(number)
        self._edits["file"] = number

    # --- damage

    @precondition(is_change_allowed)
    @rule(where=POSITIONS, place=POSITIONS, kind=st.sampled_from(DAMAGES))
    def damage_a_file(self, where, place, kind):
        self.n_changes += 1
        damage(files_to_damage(self._project.data), where, place, kind)

    @precondition(is_change_allowed)
    @rule(where=POSITIONS)
    def damage_a_shard_and_lose_the_records(self, where):
        self.n_changes += 1
        shards = [
            file for file in files_to_damage(self._project.data) if file.parent.name == "shards"
        ]
        damage(shards, where, 0.5, "flip")
        shutil.rmtree(self._project.data / "node_records", ignore_errors=True)
        (self._project.data / "shards" / "shards.json").unlink(missing_ok=True)

    @precondition(is_change_allowed)
    @rule()
    def keep_a_copy_of_the_data_folder(self):
        self.n_changes += 1
        if self._project.data.is_dir():
            shutil.rmtree(self._backup, ignore_errors=True)
            shutil.copytree(self._project.data, self._backup)

    @precondition(is_change_allowed)
    @rule(parts=st.sampled_from(["all", "outputs", "records"]))
    def restore_a_copy(self, parts):
        self.n_changes += 1
        if not self._backup.is_dir():
            return
        self._project.data.mkdir(exist_ok=True)
        for source in self._backup.iterdir():
            is_record = source.name == "node_records"
            if parts == "all" or is_record == (parts == "records"):
                _replace(source, self._project.data / source.name)

    @precondition(is_change_allowed)
    @rule()
    def delete_the_data_folder(self):
        self.n_changes += 1
        shutil.rmtree(self._project.data, ignore_errors=True)

    # --- runs

    @precondition(is_change_allowed)
    @rule(n_renames=st.integers(1, 18), kind=st.sampled_from(["run", "force"]))
    def kill_a_run(self, n_renames, kind):
        self.n_changes += 1
        request = Request(kind, self._project.data, kill_before=n_renames)
        outcome = self._project.start(request)
        # A run that renames fewer files than that ends by itself.
        assert outcome.exit_code in (0, -9), outcome

    @rule()
    def run(self):
        self.n_changes = 0
        planned = self._project.start(Request("explain", self._project.data))
        outcome = self._project.start(Request("run", self._project.data))
        assert outcome.exit_code == 0, outcome
        _check_plan(planned.text, outcome.decisions)
        self._check_results()
        again = self._project.start(Request("run", self._project.data))
        assert set(again.decisions.values()) == {None}, again.decisions

    @rule()
    def force(self):
        self.n_changes = 0
        outcome = self._project.start(Request("force", self._project.data))
        assert outcome.exit_code == 0, outcome
        assert None not in outcome.decisions.values()
        self._check_results()

    def _check_results(self) -> None:
        project = self._project
        # The type counts: 1 and True are equal, but not the same parameter.
        state = (project.number, repr(project.factor), *self._edits.values())
        if state not in self._expected:
            self._expected[state] = project.results_from_nothing()
        assert project.results(project.data) == self._expected[state]


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _check_plan(text: str, decisions: dict[str, str | None]) -> None:
    """Check that `explain` printed what the run then did."""
    plan = {node: reason for node, (_, reason) in planned_lines(text).items()}
    assert plan.keys() == decisions.keys(), text
    for name, planned in plan.items():
        # Whether an input that is made again comes out the same, only the run can know.
        if planned.startswith("if input"):
            continue
        reasons = (decisions[name] or "-").split("; ")
        known_before = _without_inputs(reasons)
        if len(known_before) < len(reasons):
            assert planned != "-", (name, reasons)
        if known_before:
            # An input that a killed run has made is known before as well.
            found = planned.split("; ")
            assert _without_inputs(found) == known_before, (name, planned, reasons)
            assert set(found) <= set(reasons), (name, planned, reasons)


def _without_inputs(reasons: list[str]) -> list[str]:
    return [reason for reason in reasons if not reason.startswith("input")]


@pytest.mark.slow
def test_runs_never_reuse_a_wrong_result():
    run_state_machine_as_test(Runs, settings=random_runs(N_STEPS, n_examples=3))
