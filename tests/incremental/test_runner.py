"""The runner: what runs again after which change, and that the result is that of running all."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.incremental import staleness
from pu_kd_pipeline.incremental.code_index import CodeIndex
from pu_kd_pipeline.incremental.locks import locked
from pu_kd_pipeline.incremental.runner import ExplainingRunner, IncrementalRunner

HELPERS = '''
def doubled(value):
    """Return twice the value."""
    return 2 * value
'''
NODES = """
from {package}.helpers import doubled

def start(params):
    return {{"value": params["number"]}}

def left(start, params):
    return {{"value": doubled(start["value"]) + params["shift"]}}

def right(start):
    return {{"value": start["value"] % 2}}

def join(left, right):
    if left["value"] == 13:
        raise ZeroDivisionError("thirteen")
    return {{"value": left["value"] + right["value"]}}

def tell(right):
    return {{"value": "odd" if right["value"] else "even"}}
"""


class Project:
    """A small package of nodes and its data folder: start -> left, right -> join, and right -> tell."""

    def __init__(self, folder: Path, package: str) -> None:
        self.code, self.package = folder / package, package
        self.data, self.params = folder / "data", {"first": {"number": 3}, "second": {"shift": 1}}
        self.save_args: dict[str, Any] = {"indent": 2}
        self.code.mkdir()
        (self.code / "__init__.py").touch()
        self.write(NODES.format(package=package), HELPERS)

    def write(self, nodes: str | None = None, helpers: str | None = None) -> None:
        for name, text in (("nodes", nodes), ("helpers", helpers)):
            if text is not None:
                (self.code / f"{name}.py").write_text(text)

    def pipeline(self) -> Pipeline:
        for name in [name for name in sys.modules if name.startswith(f"{self.package}.")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        sys.dont_write_bytecode = (
            True  # a source that changes twice within its time's resolution would be taken for old
        )
        nodes = importlib.import_module(f"{self.package}.nodes")
        return Pipeline(
            [
                Node(nodes.start, "params:first", "start_value", name="start"),
                Node(nodes.left, ["start_value", "params:second"], "left_value", name="left"),
                Node(nodes.right, "start_value", "right_value", name="right"),
                Node(nodes.join, ["left_value", "right_value"], "joined", name="join"),
                Node(nodes.tell, "right_value", "told", name="tell"),
            ]
        )

    def catalog(self) -> DataCatalog:
        entries: dict[str, Any] = {
            name: {
                "type": "json.JSONDataset",
                "filepath": str(self.data / f"{name}.json"),
                "save_args": self.save_args,
            }
            for name in ("start_value", "left_value", "right_value", "joined", "told")
        }
        folder = {
            "type": "pu_kd_pipeline.datasets.FolderDataset",
            "filepath": str(self.data / "records"),
        }
        checkpoints = {**folder, "filepath": str(self.data / "checkpoints")}
        catalog = DataCatalog.from_config(
            {**entries, "node_records": folder, "checkpoints": checkpoints}
        )
        for name, value in self.params.items():
            catalog[f"params:{name}"] = MemoryDataset(value)
        return catalog

    def run(self, the_runner: SequentialRunner | None = None) -> dict[str, str]:
        """Run, and return the nodes that ran with the reason."""
        decisions: dict[str, str | None] = {}
        progress.decisions.add(decisions.__setitem__)
        try:
            (the_runner or IncrementalRunner()).run(self.pipeline(), self.catalog())
        finally:
            progress.decisions.remove(decisions.__setitem__)
        return {name: why for name, why in decisions.items() if why is not None}

    def results(self) -> dict[str, Any]:
        return {
            path.stem: json.loads(path.read_text())["value"]
            for path in sorted(self.data.glob("*.json"))
        }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Project(tmp_path, f"pack_{abs(hash(tmp_path)) % 10**8}")
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == made.package]:
        del sys.modules[name]


ALL = {"start", "left", "right", "join", "tell"}


def test_everything_runs_once_and_nothing_the_second_time(project):
    assert project.run() == dict.fromkeys(ALL, "there is no record that it finished here")
    before = {path: path.stat().st_mtime_ns for path in project.data.glob("*.json")}
    assert project.run() == {}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert project.results()["joined"] == 8


def test_a_changed_parameter_runs_its_node_and_those_after_it(project):
    project.run()
    project.params["second"] = {"shift": 5}
    assert project.run() == {
        "left": "parameter second.shift 1 → 5",
        "join": "input left_value changed",
    }
    assert project.results()["joined"] == 12
    assert project.run() == {}


def test_nodes_after_an_output_that_came_out_the_same_are_skipped(project):
    project.run()
    project.params["first"] = {"number": 5}  # still odd
    assert set(project.run()) == {"start", "left", "right", "join"}
    project.params["first"] = {"number": 5, "unused": True}
    assert project.run() == {"start": "parameter first.unused is new: true"}


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda file: file.unlink(), "output right_value is missing"),
        (
            lambda file: file.write_text('{"value": 7}'),
            "output right_value is not what was written",
        ),
        (
            lambda file: file.write_text(file.read_text()[:4]),
            "output right_value is not what was written",
        ),
    ],
)
def test_an_output_that_is_gone_or_edited_is_made_again(project, harm, reason):
    project.run()
    expected = project.results()
    harm(project.data / "right_value.json")
    [(name, why)] = project.run().items()
    assert name == "right"
    assert why.startswith(reason)
    assert project.results() == expected
    assert project.run() == {}


def test_code_counts_where_it_is_called_and_comments_do_not(project):
    project.run()
    project.write(
        helpers='# new\n\ndef doubled(value):\n    """Say it otherwise."""\n    return 2 * value  # the same\n'
    )
    assert project.run() == {}
    project.write(helpers="def doubled(value):\n    return 3 * value\n\ndef unused():\n    pass\n")
    ran = project.run()
    assert ran == {
        "left": f"code changed: {project.package}.helpers:doubled",
        "join": "input left_value changed",
    }
    assert project.results()["left_value"] == 10


def test_code_that_turned_out_the_same_is_not_looked_at_again(project, monkeypatch):
    project.run()
    project.write(helpers=HELPERS + "# a remark\n")
    assert project.run() == {}
    monkeypatch.setattr(CodeIndex, "code_of", lambda *_: pytest.fail("it was parsed again"))
    assert project.run() == {}


def test_a_changed_catalog_entry_makes_its_data_set_again(project):
    project.run()
    project.save_args = {"indent": 4}
    ran = project.run()
    assert ran["start"] == "catalog entry start_value changed"
    assert set(ran) == ALL


def test_another_version_of_a_library_runs_everything(project, monkeypatch):
    project.run()
    known = staleness.libraries()
    monkeypatch.setattr(staleness, "libraries", lambda: {**known, "torch": "9.9"})
    assert project.run() == dict.fromkeys(ALL, f"torch {known['torch']} → 9.9")


def test_force_and_the_plain_runner_run_everything(project):
    project.run()
    assert project.run(IncrementalRunner(force=True)) == dict.fromkeys(
        ALL, "it was asked for (force)"
    )
    assert project.run() == {}
    for path in project.data.glob("*.json"):
        path.unlink()
    project.run(SequentialRunner())
    assert set(project.results()) == {"start_value", "left_value", "right_value", "joined", "told"}
    assert project.run() == {}  # its outputs are those on record


def test_a_failed_node_runs_again_and_those_before_it_do_not(project):
    project.params["second"] = {"shift": 7}  # 2 * 3 + 7 is thirteen
    with pytest.raises(ZeroDivisionError):
        project.run()
    project.write(nodes=NODES.format(package=project.package).replace("== 13", "== 14"))
    assert "join" in project.run()
    assert project.results()["joined"] == 14
    project.params["second"] = {"shift": 8}
    with pytest.raises(ZeroDivisionError):
        project.run()
    project.params["second"] = {"shift": 7}
    ran = project.run()
    assert ran["left"] == "parameter second.shift 8 → 7"
    assert (
        ran["join"] == "there is no record that it finished here"
    )  # what it would have overwritten is not trusted


def test_what_a_stopped_node_left_is_kept_for_the_same_code_alone(project):
    project.params["second"] = {"shift": 7}  # join fails
    kept = project.data / "checkpoints" / "join" / "last.ckpt"
    for text, is_there in ((None, True), (None, True), (NODES.replace("thirteen", "13"), False)):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
        project.write(nodes=text.format(package=project.package) if text else None)
        with pytest.raises(ZeroDivisionError):
            project.run()
        assert kept.exists() == is_there


def test_what_a_killed_process_was_writing_is_removed(project):
    project.run()
    (project.data / "records" / "left.json").unlink()  # as while it ran
    half = [
        project.data / ".left_value.json.12345.tmp",
        project.data / "records" / ".left.json.12345.tmp",
        project.data / "records" / ".file_states.json.12345.tmp",
    ]
    folders = [project.data / ".left_value.json.12345.old"]
    of_others = [project.data / ".right_value.json.12345.tmp", project.data / ".left_value.json"]
    for path in (*half, *of_others):
        path.touch()
    for path in folders:
        (path / "inside").mkdir(parents=True)
    assert set(project.run()) == {"left"}
    assert [path for path in (*half, *folders) if path.exists()] == []
    assert all(
        path.exists() for path in of_others
    )  # another run may be writing them: its own locks are its own


def test_a_data_folder_may_be_moved(project, tmp_path):
    project.run()
    shutil.copytree(project.data, tmp_path / "elsewhere")
    shutil.rmtree(project.data)
    project.data = tmp_path / "elsewhere"
    assert project.run() == {}


def test_records_that_cannot_be_read_are_none(project):
    project.run()
    (project.data / "records" / "left.json").write_text('{"version": 1, "inputs": ')
    (project.data / "records" / "right.json").write_text('{"version": 0}')
    (project.data / "records" / "file_states.json").write_text("[]")
    assert set(project.run()) == {"left", "right"}


def test_a_data_set_in_memory_is_made_every_time(project):
    catalog = project.catalog()
    catalog["right_value"] = MemoryDataset()
    decisions: dict[str, str | None] = {}
    for _ in range(2):
        progress.decisions.add(decisions.__setitem__)
        IncrementalRunner().run(project.pipeline(), catalog)
        progress.decisions.remove(decisions.__setitem__)
    assert (
        decisions["right"]
        == decisions["join"]
        == "`right_value` is not kept on this machine's disk"
    )
    assert decisions["start"] is decisions["left"] is None


def test_explaining_prints_the_plan_and_touches_nothing(project, capsys):
    ExplainingRunner().run(project.pipeline(), project.catalog())
    assert "5 of 5 nodes would run.\n" in capsys.readouterr().out
    assert project.results() == {}
    project.run()
    project.params["first"] = {"number": 4}
    files = {path: path.read_bytes() for path in project.data.rglob("*.json")}
    capsys.readouterr()
    ExplainingRunner()._run(project.pipeline(), project.catalog())
    assert {path: path.read_bytes() for path in files} == files
    assert capsys.readouterr().out.splitlines() == [
        "start  parameter first.number 3 → 4",
        "left   if input start_value changes",
        "right  if input start_value changes",
        "join   if input left_value or right_value changes",
        "tell   if input right_value changes",
        "5 of 5 nodes would run.",
    ]
    project.run()
    capsys.readouterr()
    ExplainingRunner()._run(project.pipeline(), project.catalog())
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing to do: all 5 nodes are up to date."


def test_a_second_run_that_would_write_the_same_is_refused(project):
    locks = project.data / "records" / "locks"
    with locked(locks, writes=["joined"], reads=["left_value"]):
        with pytest.raises(
            InputError,
            match=r"another run (reads or )?makes `joined` in .* \(process \d+ on .*, since",
        ):
            project.run()
        assert project.results() == {}
        with locked(locks, writes=["told"], reads=["left_value", "right_value"]):
            pass  # two that read the same and write apart
        with (
            pytest.raises(
                InputError, match="another run reads or makes `left_value`.*--params=data="
            ),
            locked(locks, writes=["left_value"], reads=[]),
        ):
            pass
    assert set(project.run()) == ALL


CHANGES: dict[str, Callable[[Project, int], None]] = {
    "number": lambda project, value: project.params.update(first={"number": value}),
    "shift": lambda project, value: project.params.update(second={"shift": value}),
    "lost": lambda project, value: sorted(project.data.glob("*.json"))[value].unlink(
        missing_ok=True
    ),
    "edited": lambda project, value: sorted(project.data.glob("*.json"))[value].write_text(
        '{"value": 99}'
    ),
    "code": lambda project, value: project.write(
        helpers=f"def doubled(value):\n    return 2 * value + {value}\n"
    ),
    "nothing": lambda project, value: None,
}


@settings(max_examples=20, derandomize=True)
@given(changes=st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 3)), max_size=5))
def test_after_any_changes_the_results_are_those_of_running_all(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("property")
    sys.path.insert(0, str(folder))
    try:
        project = Project(folder, f"pack_{folder.name}")
        project.write(nodes=NODES.format(package=project.package).replace("== 13", "is None"))
        project.run()
        for name, value in changes:
            CHANGES[name](project, value)
            project.run()
        found = project.results()
        assert project.run() == {}
        project.run(IncrementalRunner(force=True))
        assert project.results() == found
    finally:
        sys.path.remove(str(folder))
