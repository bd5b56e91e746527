"""The runners: what runs again after which change, and that the result is that of running all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from pu_kd_pipeline.datasets import FolderDataset
from pu_kd_pipeline.errors import UnavailableError
from pu_kd_pipeline.incremental.locks import locked
from pu_kd_pipeline.incremental.runner import ExplainingRunner, IncrementalRunner
from tests.incremental.projects import ALL_NODES, DATASETS, NO_RECORD, Project, planned_reasons


def modification_times(project: Project) -> list[int]:
    """Return when each output was written."""
    return [file.stat().st_mtime_ns for file in project.files()]


def explained(project: Project, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that explain what a run would do."""
    # Discard what was printed before.
    capsys.readouterr()
    # `run` would print the log of Kedro as well.
    runner = ExplainingRunner()
    runner._run(project.pipeline(), project.catalog())
    printed = capsys.readouterr()
    return printed.out.splitlines()


def test_everything_runs_once_and_nothing_the_second_time(project):
    ran = project.run()
    assert ran == dict.fromkeys(ALL_NODES, NO_RECORD)
    results = project.results()
    assert results["joined"] == 8

    before = modification_times(project)
    ran_again = project.run()
    assert ran_again == {}
    assert modification_times(project) == before


def test_nodes_after_an_output_that_came_out_the_same_are_skipped(project):
    project.run()
    # Still odd, so that the parity comes out the same.
    project.params["first"] = {"number": 5}
    ran = project.run()
    assert set(ran) == {"start", "left", "right", "join"}

    project.params["first"] = {"number": 5, "unused": True}
    ran = project.run()
    assert ran == {"start": "parameter first.unused is new: true"}


def test_force_runs_everything(project):
    project.run()
    forcing = IncrementalRunner(force=True)
    ran = project.run(forcing)
    assert ran == dict.fromkeys(ALL_NODES, "it was asked for (force)")

    # The next run is not forced.
    ran_again = project.run()
    assert ran_again == {}


def test_kedros_own_runner_runs_everything(project):
    project.run()
    for path in project.files():
        path.unlink()

    project.run(SequentialRunner())
    results = project.results()
    assert set(results) == set(DATASETS)
    # The outputs are those on record, whoever wrote them.
    ran = project.run()
    assert ran == {}


def test_a_failed_node_runs_again_and_those_before_it_do_not(project):
    project.params["second"] = {"shift": 7}  # 2 * 3 + 7 is thirteen
    with pytest.raises(ZeroDivisionError):
        project.run()

    project.write_nodes("== 13", "== 14")
    ran = project.run()
    assert "join" in ran
    results = project.results()
    assert results["joined"] == 14


def test_a_node_that_failed_runs_again_though_its_output_looks_intact(project):
    project.params["second"] = {"shift": 7}
    project.write_nodes("== 13", "== 14")
    project.run()
    project.params["second"] = {"shift": 8}  # 2 * 3 + 8 is fourteen
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

    # And with it the nodes that read it.
    in_memory = "`right_value` is not kept on this machine's disk"
    assert ran == dict.fromkeys(["right", "join", "parity"], in_memory)


def test_explaining_a_first_run_touches_nothing(project, capsys):
    runner = ExplainingRunner()
    runner.run(project.pipeline(), project.catalog())

    printed = capsys.readouterr()
    assert "5 of 5 nodes would run.\n" in printed.out
    results = project.results()
    assert results == {}


def all_files(project: Project) -> dict[Path, bytes]:
    """Return the content of every output and of every record."""
    files = project.data.rglob("*.json")
    return {path: path.read_bytes() for path in files}


def test_explaining_prints_the_plan_and_touches_nothing(project, capsys):
    project.run()
    project.params["first"] = {"number": 4}
    before = all_files(project)
    lines = explained(project, capsys)

    # The records as well as the outputs.
    assert all_files(project) == before
    assert planned_reasons("\n".join(lines)) == {
        "start": "parameter first.number 3 → 4",
        "left": "if input start_value changes",
        "right": "if input start_value changes",
        "join": "if input left_value or right_value changes",
        "parity": "if input right_value changes",
    }
    assert lines[-1].startswith("5 of 5 nodes would run. ")


def test_explaining_a_run_that_is_up_to_date_says_so(project, capsys):
    project.run()
    lines = explained(project, capsys)
    assert lines[-1] == "Nothing to do: all 5 nodes are up to date."


def test_a_second_run_that_would_write_the_same_is_refused(project):
    locks = project.data / "records" / "locks"
    message = r"another run (reads or )?makes `joined` in .* \(process \d+ on .*, since"
    with locked(locks, writes=["joined"], reads=["left_value"]):
        # Not a user error: a scheduler may try it again.
        with pytest.raises(UnavailableError, match=message):
            project.run()
        results = project.results()
        assert results == {}

    # The lock is gone with its run.
    ran = project.run()
    assert set(ran) == ALL_NODES


def test_two_runs_may_read_the_same_and_write_apart(project):
    locks = project.data / "records" / "locks"
    message = "another run reads or makes `left_value`.*--params=data="
    with locked(locks, writes=["joined"], reads=["left_value"]):
        with locked(locks, writes=["parity"], reads=["left_value", "right_value"]):
            pass
        with (
            pytest.raises(UnavailableError, match=message),
            locked(locks, writes=["left_value"], reads=[]),
        ):
            pass


# --- any changes


def set_number(project: Project, value: int) -> None:
    block = {"number": value}
    project.params["first"] = block


def set_shift(project: Project, value: int) -> None:
    block = {"shift": value}
    project.params["second"] = block


def remove_output(project: Project, value: int) -> None:
    files = project.files()
    files[value].unlink()


def edit_output(project: Project, value: int) -> None:
    files = project.files()
    files[value].write_text('{"value": 99}')


def change_code(project: Project, value: int) -> None:
    text = f"def doubled(value):\n    return 2 * value + {value}\n"
    project.write_helpers(text)


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
        ran_again = project.run()
        assert ran_again == {}

        # Whatever was skipped would have come out the same.
        forcing = IncrementalRunner(force=True)
        project.run(forcing)
        assert project.results() == found
    finally:
        sys.path.remove(str(folder))


# --- explaining


def tree(project: Project) -> dict[str, tuple[int, int]]:
    """Return path -> time and size of everything in the data folder."""
    found = {}
    for path in project.data.rglob("*"):
        about = path.lstat()
        found[str(path)] = (about.st_mtime_ns, about.st_size)
    return found


def break_nothing(project: Project) -> None:
    """Leave the project as it is."""


def remove_all_records(project: Project) -> None:
    for file in (project.data / "records").glob("*.json"):
        file.unlink()


def edit_code(project: Project) -> None:
    project.write_helpers("def doubled(value):\n    return 5 * value\n")


def edit_first_parameter(project: Project) -> None:
    project.params["first"] = {"number": 4}


def touch_outputs(project: Project) -> None:
    for file in project.files():
        file.touch()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "change",
    [break_nothing, remove_all_records, edit_code, edit_first_parameter, touch_outputs],
)
def test_explaining_and_running_agree_and_explaining_writes_nothing(project, change, force: bool):
    project.run()
    change(project)
    before = tree(project)
    explained_reasons = project.explain(force=force)
    assert tree(project) == before

    ran = project.run(IncrementalRunner(force=force))
    assert set(ran) <= set(explained_reasons)
    for node, reason in explained_reasons.items():
        if not reason.startswith("if input"):
            # Of a node after others, the input may have changed in addition.
            assert ran[node].endswith(reason)


def test_explaining_kedros_own_runner_says_that_it_runs_everything(project):
    project.run()
    reasons = project.explain(instead_of="SequentialRunner")
    assert reasons == dict.fromkeys(ALL_NODES, "SequentialRunner runs every node")


def test_a_catalog_without_records_is_explained_as_it_runs(project):
    entries = project.entries()
    del entries["node_records"]
    project.entries = lambda: entries
    reason = "the catalog has no entry `node_records` in a folder on this machine"
    assert project.explain() == dict.fromkeys(ALL_NODES, reason)
    project.run()
    assert set(project.results()) == set(DATASETS)


# --- force


class Remade(FolderDataset):
    """A data set of parts that remembers whether it was asked to make all of them again."""

    n_times = 0

    def make_again(self) -> None:
        type(self).n_times += 1

    def save(self, data: dict[str, int]) -> None:
        self.filepath.mkdir(parents=True, exist_ok=True)
        (self.filepath / "part.json").write_text(str(data))


@pytest.mark.parametrize("has_records", [True, False])
def test_force_uses_nothing_that_was_made_before(project, has_records: bool):
    entries = project.entries()
    if not has_records:
        del entries["node_records"]
    project.entries = lambda: entries

    def catalog() -> DataCatalog:
        made = project.catalog()
        made["parity"] = Remade(filepath=str(project.data / "parity"))
        return made

    project.run(catalog=catalog())
    Remade.n_times = 0
    project.run(catalog=catalog())
    assert Remade.n_times == 0

    checkpoint = project.data / "checkpoints" / "join" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    project.run(IncrementalRunner(force=True), catalog=catalog())
    assert Remade.n_times == 1
    assert not checkpoint.exists()
