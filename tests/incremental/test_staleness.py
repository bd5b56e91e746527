"""What makes a node run again, and what is removed before it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from kedro.pipeline import Node

from pu_kd_pipeline.incremental import node_states
from pu_kd_pipeline.provenance.code_index import CodeIndex
from pu_kd_pipeline.provenance.libraries import library_versions
from tests.incremental.projects import ALL_NODES, HELPERS


def test_a_changed_parameter_runs_its_node_and_those_after_it(project):
    project.run()
    project.params["second"] = {"shift": 5}
    assert project.run() == {
        "left": "parameter second.shift 1 → 5",
        "join": "input left_value changed",
    }
    assert project.results()["joined"] == 12
    assert project.run() == {}


def test_another_engine_is_no_reason_to_run(project, monkeypatch):
    def nodes(functions: Any) -> list[Node]:
        return [
            Node(functions.start, "params:first", "start_value", name="start"),
            Node(functions.left, ["start_value", "params:engine"], "left_value", name="left"),
        ]

    monkeypatch.setattr(project, "nodes", nodes)
    project.params["engine"] = {"kind": "local", "shift": 1}
    assert set(project.run()) == {"start", "left"}
    project.params["engine"] = {"kind": "ray", "shift": 1}
    assert project.run() == {}
    # Of the other parameters, each is one.
    project.params["first"] = {"number": 4}
    assert set(project.run()) == {"start", "left"}


def test_another_number_of_workers_is_no_reason_to_run(project):
    project.params["second"] = {"shift": 2, "training_workers": {"n": 1, "timeout_s": 600}}
    project.run()
    project.params["second"] = {"shift": 2, "training_workers": {"n": 4, "timeout_s": 60}}
    assert project.run() == {}
    project.params["second"] = {"shift": 5, "training_workers": {"n": 4, "timeout_s": 60}}
    assert project.run()["left"] == "parameter second.shift 2 → 5"


def cut_short(file: Path) -> None:
    text = file.read_text()
    file.write_text(text[:4])


def edit(file: Path) -> None:
    file.write_text('{"value": 7}')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "output right_value is missing"),
        (edit, "output right_value is not what was written"),
        (cut_short, "output right_value is not what was written"),
    ],
)
def test_an_output_that_is_gone_or_edited_is_made_again(
    project, damage: Callable[[Path], None], reason: str
):
    project.run()
    expected = project.results()
    damage(project.data / "right_value.json")
    ran = project.run()
    assert list(ran) == ["right"]
    assert ran["right"].startswith(reason)
    assert project.results() == expected

    # The nodes after it are up to date: the output came out the same.
    ran_again = project.run()
    assert ran_again == {}


def test_comments_and_docstrings_do_not_count(project):
    project.run()
    project.write_helpers(
        "# new\n\n"
        "def doubled(value):\n"
        '    """Another docstring."""\n'
        "    return 2 * value  # the same\n"
    )
    assert project.run() == {}


def test_code_counts_where_it_is_called(project):
    project.run()
    project.write_helpers("def doubled(value):\n    return 3 * value\n\ndef unused():\n    pass\n")
    assert project.run() == {
        "left": f"code changed: {project.package}.helpers:doubled",
        "join": "input left_value changed",
    }
    assert project.results()["left_value"] == 10


def test_code_that_turned_out_the_same_is_not_parsed_again(project, monkeypatch):
    def fail(*_: Any) -> None:
        pytest.fail("it was parsed again")

    project.run()
    # The stamp of the files changes, and the code does not.
    project.write_helpers(HELPERS + "# a remark\n")
    ran = project.run()
    assert ran == {}

    monkeypatch.setattr(CodeIndex, "code", fail)
    ran = project.run()
    assert ran == {}


def test_a_changed_catalog_entry_makes_its_data_set_again(project):
    project.run()
    project.save_args = {"indent": 4}
    ran = project.run()
    assert ran["start"] == "catalog entry start_value changed"
    assert set(ran) == ALL_NODES


def test_another_version_of_a_library_runs_everything(project, monkeypatch):
    project.run()
    installed = library_versions()

    def upgraded(others: Iterable[str]) -> dict[str, str]:
        return {**library_versions(others), "torch": "9.9"}

    monkeypatch.setattr(node_states, "library_versions", upgraded)

    # Another version may compute other numbers from the same code.
    ran = project.run()
    reason = f"torch {installed['torch']} → 9.9"
    assert ran == dict.fromkeys(ALL_NODES, reason)


def test_checkpoints_of_a_stopped_node_are_kept_only_for_the_same_code(project):
    project.params["second"] = {"shift": 7}  # join fails
    checkpoint = project.data / "checkpoints" / "join" / "last.ckpt"

    def run_with_checkpoint() -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
        with pytest.raises(ZeroDivisionError):
            project.run()

    run_with_checkpoint()
    assert checkpoint.exists()
    run_with_checkpoint()
    assert checkpoint.exists()
    project.write_nodes("thirteen", "13")
    run_with_checkpoint()
    assert not checkpoint.exists()


def test_unfinished_files_of_a_killed_process_are_removed(project):
    project.run()
    records = project.data / "records"
    (records / "left.json").unlink()  # as while it ran
    unfinished = [
        project.data / ".left_value.json.12345.tmp",
        records / ".left.json.12345.tmp",
        records / ".file_states.json.12345.tmp",
    ]
    replaced_folder = project.data / ".left_value.json.12345.old"
    # Another run may be writing the first: it has locks of its own.
    of_others = [project.data / ".right_value.json.12345.tmp", project.data / ".left_value.json"]
    for path in (*unfinished, *of_others):
        path.touch()
    inside = replaced_folder / "inside"
    inside.mkdir(parents=True)

    ran = project.run()
    assert set(ran) == {"left"}
    for path in (*unfinished, replaced_folder):
        assert not path.exists()
    for path in of_others:
        assert path.exists()


def test_a_data_folder_may_be_moved(project, tmp_path):
    project.run()
    # A copy, which does not keep the times of the files as a rename would.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(project.data, elsewhere)
    shutil.rmtree(project.data)
    project.data = elsewhere

    ran = project.run()
    assert ran == {}


def test_a_record_that_cannot_be_read_counts_as_none(project):
    project.run()
    records = project.data / "records"
    damaged = {
        "left.json": '{"version": 1, "inputs": ',
        # Of another version of this program.
        "right.json": '{"version": 0}',
        "file_states.json": "[]",
    }
    for name, text in damaged.items():
        file = records / name
        file.write_text(text)

    ran = project.run()
    assert set(ran) == {"left", "right"}


def connect(project, inputs: Any, outputs: Any, function: Callable[..., Any]) -> None:
    """Let the node `join` read and write other data sets; the others stay as they are."""
    nodes = type(project).nodes

    def connected(functions: Any) -> list[Node]:
        kept = [node for node in nodes(project, functions) if node.name != "join"]
        return [*kept, Node(function, inputs, outputs, name="join")]

    project.nodes = connected


def difference(a, b):
    return {"value": a["value"] - b["value"]}


def two_texts(value):
    return {"first": {"value": value["value"]}, "second": {"value": -value["value"]}}


@pytest.mark.parametrize(
    ("function", "before", "after"),
    [
        (
            difference,
            (["left_value", "right_value"], "joined"),
            (["right_value", "left_value"], "joined"),
        ),
        (
            difference,
            ({"a": "left_value", "b": "right_value"}, "joined"),
            ({"b": "left_value", "a": "right_value"}, "joined"),
        ),
        (
            two_texts,
            ("start_value", {"first": "joined", "second": "other_value"}),
            ("start_value", {"second": "joined", "first": "other_value"}),
        ),
    ],
)
def test_a_node_runs_again_where_the_pipeline_connects_it_in_another_way(
    project, function: Callable[..., Any], before: tuple[Any, Any], after: tuple[Any, Any]
):
    connect(project, *before, function)
    project.run()
    first = project.results()
    connect(project, *after, function)
    reason = {"join": "the pipeline connects its inputs or outputs in another way"}
    assert project.explain() == reason
    assert project.run() == reason
    assert project.results()["joined"] == -first["joined"]
    assert project.run() == {}
