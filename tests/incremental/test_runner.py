"""The runners: what runs again after which change, and that the result is that of running all."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io import MemoryDataset
from kedro.runner import SequentialRunner

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.incremental.locks import locked
from pu_kd_pipeline.incremental.runner import ExplainingRunner, IncrementalRunner
from tests.incremental.projects import ALL_NODES, DATASETS, NO_RECORD, Project


def test_everything_runs_once_and_nothing_the_second_time(project):
    assert project.run() == dict.fromkeys(ALL_NODES, NO_RECORD)
    before = [file.stat().st_mtime_ns for file in project.files()]
    assert project.run() == {}
    assert [file.stat().st_mtime_ns for file in project.files()] == before
    assert project.results()["joined"] == 8


def test_nodes_after_an_output_that_came_out_the_same_are_skipped(project):
    project.run()
    project.params["first"] = {"number": 5}  # still odd
    assert set(project.run()) == {"start", "left", "right", "join"}
    project.params["first"] = {"number": 5, "unused": True}
    assert project.run() == {"start": "parameter first.unused is new: true"}


def test_force_runs_everything(project):
    project.run()
    ran = project.run(IncrementalRunner(force=True))
    assert ran == dict.fromkeys(ALL_NODES, "it was asked for (force)")
    assert project.run() == {}


def test_kedros_own_runner_runs_everything(project):
    project.run()
    for path in project.files():
        path.unlink()
    project.run(SequentialRunner())
    assert set(project.results()) == set(DATASETS)
    assert project.run() == {}  # the outputs are those on record


def test_a_failed_node_runs_again_and_those_before_it_do_not(project):
    project.params["second"] = {"shift": 7}  # 2 * 3 + 7 is thirteen
    with pytest.raises(ZeroDivisionError):
        project.run()
    project.write_nodes("== 13", "== 14")
    assert "join" in project.run()
    assert project.results()["joined"] == 14
    project.params["second"] = {"shift": 8}
    with pytest.raises(ZeroDivisionError):
        project.run()
    project.params["second"] = {"shift": 7}
    ran = project.run()
    assert ran["left"] == "parameter second.shift 8 → 7"
    # Its output is that of shift 7, but it might have been half overwritten.
    assert ran["join"] == NO_RECORD


def test_a_data_set_in_memory_is_made_every_time(project):
    catalog = project.catalog()
    catalog["right_value"] = MemoryDataset()
    project.run(catalog=catalog)
    ran = project.run(catalog=catalog)
    in_memory = "`right_value` is not kept on this machine's disk"
    # and with it the nodes that read it
    assert ran == dict.fromkeys(["right", "join", "parity"], in_memory)


def test_explaining_a_first_run_touches_nothing(project, capsys):
    ExplainingRunner().run(project.pipeline(), project.catalog())
    assert "5 of 5 nodes would run.\n" in capsys.readouterr().out
    assert project.results() == {}


def test_explaining_prints_the_plan_and_touches_nothing(project, capsys):
    project.run()
    project.params["first"] = {"number": 4}
    files = {path: path.read_bytes() for path in project.data.rglob("*.json")}
    capsys.readouterr()
    ExplainingRunner()._run(project.pipeline(), project.catalog())
    assert {path: path.read_bytes() for path in files} == files
    assert capsys.readouterr().out.splitlines() == [
        "start   parameter first.number 3 → 4",
        "left    if input start_value changes",
        "right   if input start_value changes",
        "join    if input left_value or right_value changes",
        "parity  if input right_value changes",
        "5 of 5 nodes would run.",
    ]


def test_explaining_a_run_that_is_up_to_date_says_so(project, capsys):
    project.run()
    capsys.readouterr()
    ExplainingRunner()._run(project.pipeline(), project.catalog())
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == "Nothing to do: all 5 nodes are up to date."


def test_a_second_run_that_would_write_the_same_is_refused(project):
    locks = project.data / "records" / "locks"
    message = r"another run (reads or )?makes `joined` in .* \(process \d+ on .*, since"
    with locked(locks, writes=["joined"], reads=["left_value"]):
        with pytest.raises(InputError, match=message):
            project.run()
        assert project.results() == {}
    assert set(project.run()) == ALL_NODES


def test_two_runs_may_read_the_same_and_write_apart(project):
    locks = project.data / "records" / "locks"
    message = "another run reads or makes `left_value`.*--params=data="
    with locked(locks, writes=["joined"], reads=["left_value"]):
        with locked(locks, writes=["parity"], reads=["left_value", "right_value"]):
            pass
        with (
            pytest.raises(InputError, match=message),
            locked(locks, writes=["left_value"], reads=[]),
        ):
            pass


# --- any changes


def set_number(project: Project, value: int) -> None:
    project.params["first"] = {"number": value}


def set_shift(project: Project, value: int) -> None:
    project.params["second"] = {"shift": value}


def remove_output(project: Project, value: int) -> None:
    files = project.files()
    files[value].unlink()


def edit_output(project: Project, value: int) -> None:
    files = project.files()
    files[value].write_text('{"value": 99}')


def change_code(project: Project, value: int) -> None:
    project.write_helpers(f"def doubled(value):\n    return 2 * value + {value}\n")


def change_nothing(project: Project, value: int) -> None:
    """Run again."""


CHANGES: tuple[Callable[[Project, int], None], ...] = (
    set_number,
    set_shift,
    remove_output,
    edit_output,
    change_code,
    change_nothing,
)


@settings(max_examples=20, derandomize=True)
@given(changes=st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 3)), max_size=5))
def test_after_any_changes_the_results_are_those_of_running_all(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("property")
    sys.path.insert(0, str(folder))
    try:
        project = Project(folder, f"pack_{folder.name}")
        project.write_nodes("== 13", "is None")  # no change makes it fail
        project.run()
        for change, value in changes:
            change(project, value)
            project.run()
        found = project.results()
        assert project.run() == {}
        project.run(IncrementalRunner(force=True))
        assert project.results() == found
    finally:
        sys.path.remove(str(folder))
