"""The record of a node holds the code that ran, not what is on the disk when it is written."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.incremental.projects import ALL_NODES, HELPERS, NO_RECORD, Project, TableProject

TRIPLED = "def doubled(value):\n    return 3 * value\n"
EDITING = """
def start(params):
    import pathlib
    for file, text in params.get("edits", {{}}).items():
        pathlib.Path(file).write_text(text)
"""


@pytest.fixture
def editing_project(project: Project) -> Project:
    """A project whose first node writes files, as somebody does while it runs."""
    text = EDITING.format()
    project.write_nodes("\ndef start(params):\n", text)
    return project


def edit_while_running(project: Project, file: str, text: str) -> dict[str, str]:
    """Run with an edit in the first node, and return the reasons of the nodes that ran."""
    edits = {str(project.code / file): text}
    project.params["first"] = {"number": 3, "edits": edits}
    return project.run()


def test_code_that_is_edited_while_an_earlier_node_runs_is_run_next_time(editing_project):
    project = editing_project
    ran = edit_while_running(project, "helpers.py", TRIPLED)
    assert set(ran) == ALL_NODES
    # What was imported at the start went on to run.
    assert project.results()["left_value"] == 7

    project.params["first"]["edits"] = {}
    ran = project.run()
    assert ran["left"] == f"code changed: {project.package}.helpers:doubled"
    assert project.results()["left_value"] == 10


def test_an_edit_that_is_taken_back_leaves_the_record_of_the_code_that_ran(editing_project):
    project = editing_project
    edit_while_running(project, "helpers.py", TRIPLED)
    project.write_helpers(HELPERS)
    project.params["first"]["edits"] = {}

    ran = project.run()
    assert set(ran) == {"start"}
    assert project.results()["left_value"] == 7


def test_a_comment_that_is_added_while_a_node_runs_costs_nothing(editing_project):
    project = editing_project
    edit_while_running(project, "helpers.py", HELPERS + "# a remark\n")
    project.params["first"]["edits"] = {}
    assert set(project.run()) == {"start"}


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_code_that_a_node_imports_after_an_edit_is_not_recorded(
    project, caplog, is_taken_back: bool
):
    # The node changes the module that it imports afterwards, as somebody may do at that moment.
    edit = f"    open({str(project.code / 'helpers.py')!r}, 'w').write({TRIPLED!r})\n"
    imported = f"    from {project.package}.helpers import doubled\n"
    project.write_nodes(f"from {project.package}.helpers import doubled\n", "")
    text = (project.code / "nodes.py").read_text()
    start = "def left(start, params):\n"
    (project.code / "nodes.py").write_text(text.replace(start, start + edit + imported))

    project.run()
    assert project.results()["left_value"] == 10
    assert "left runs again next time, because something changed while it ran" in caplog.text

    if is_taken_back:
        project.write_helpers(HELPERS)
    ran = project.run()
    assert ran["left"] == NO_RECORD


def test_code_that_was_imported_and_then_edited_is_recorded_as_imported(project):
    # As in a notebook, where a long time passes between the two.
    pipeline = project.pipeline()
    project.write_helpers(TRIPLED)
    project.run(pipeline=pipeline)
    assert project.results()["left_value"] == 7
    assert project.run(pipeline=pipeline) == {}

    ran = project.run()
    assert ran["left"] == f"code changed: {project.package}.helpers:doubled"


def test_code_that_was_loaded_in_two_versions_runs_every_time(project):
    pipeline = project.pipeline()
    helpers = sys.modules[f"{project.package}.helpers"]
    project.write_helpers(TRIPLED)
    # The nodes keep the function that they imported before.
    importlib.reload(helpers)
    for _ in range(2):
        ran = project.run(pipeline=pipeline)
        assert "changed and loaded again in this process" in ran["left"]
    assert ran["left"].startswith("it runs every time: it uses ")

    assert project.run()["left"] == NO_RECORD
    assert project.run() == {}


def test_an_input_that_changes_while_a_node_runs_is_not_recorded(project, caplog):
    start_value = project.data / "start_value.json"
    edit = f"    open({str(start_value)!r}, 'w').write('{{{{\"value\": 9}}}}')\n"
    project.write_nodes("def right(start):\n", "def right(start):\n" + edit)
    project.run()
    assert "right runs again next time" in caplog.text
    assert "input start_value changed" in caplog.text


@pytest.fixture
def table_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    project = TableProject(tmp_path, f"pack_{abs(hash(tmp_path)) % 10**8}")
    yield project
    project.forget_modules()
    sys.modules.pop(project.package, None)


def test_the_code_of_a_factory_reaches_every_node_that_uses_its_network(table_project):
    project = table_project
    project.run()
    before = project.results()["sum_value"]
    assert project.run() == {}

    # The weights stay, and the forward pass is another one.
    project.write_layers(2)
    ran = project.run()
    assert ran["build"] == "what net.factory names changed"
    assert ran["table"] == "input net changed; what net names changed"
    assert ran["sum"] == "input table changed"
    assert project.results()["sum_value"] == pytest.approx(2 * before)
    assert project.run() == {}


def test_a_node_that_reads_a_model_of_other_code_runs_also_where_the_model_is_not_made_again(
    table_project, caplog
):
    project = table_project
    project.run()
    before = project.results()["sum_value"]
    project.write_layers(2)

    readers = project.pipeline().only_nodes("table", "sum")
    ran = project.run(pipeline=readers)
    assert ran["table"] == "what net names changed"
    assert project.results()["sum_value"] == pytest.approx(2 * before)
    assert "has changed since this model was saved" in caplog.text
