"""How long nodes took, what a pilot forecast, and what `kedro explain` says of both."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.incremental.checked_files import write_checked
from pu_kd_pipeline.incremental.durations import (
    PILOT,
    Duration,
    Estimate,
    NodeDurations,
    total_sentences,
)
from pu_kd_pipeline.incremental.node_records import VERSION, NodeRecord
from pu_kd_pipeline.incremental.runner import ExplainingRunner, IncrementalRunner
from tests.incremental.damage import DAMAGES, damage
from tests.incremental.projects import ALL_NODES, Project, TableProject, planned_lines

SECONDS = 0.3


def slow_project(project: Project) -> Project:
    """Let the node `left` sleep."""
    old = "def left(start, params):\n"
    project.write_nodes(old, f"{old}    import time\n    time.sleep({SECONDS})\n")
    return project


def durations_of(project: Project) -> NodeDurations:
    return NodeDurations(project.data / "records")


def set_times(project: Project, **seconds: float) -> None:
    """Let nodes have taken some seconds."""
    for node, number in seconds.items():
        durations_of(project).write(Duration(node, number, is_complete=True))


def forecast(project: Project, content: Any) -> None:
    """Write the forecast of a pilot, whose entry the catalog then has."""
    file = project.data / "pilot.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    entries = project.entries()
    entries[PILOT] = {"type": "json.JSONDataset", "filepath": str(file)}
    project.entries = lambda: entries


def explained(project: Project, **options: Any) -> str:
    """Return what `kedro explain` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        # `run` would print the log of Kedro as well.
        ExplainingRunner(**options)._run(project.pipeline(), project.catalog())
    return printed.getvalue()


def times(project: Project, **options: Any) -> dict[str, str]:
    """Return node -> what `kedro explain` says of its time."""
    return {node: time for node, (time, _) in planned_lines(explained(project, **options)).items()}


def total(project: Project) -> str:
    return explained(project).splitlines()[-1]


def test_a_run_measures_its_nodes(project):
    slow_project(project).run()
    durations = {node: durations_of(project).read(node) for node in ALL_NODES}
    assert all(duration.is_complete for duration in durations.values())
    assert SECONDS <= durations["left"].seconds < SECONDS + 5
    found = times(project)
    assert set(found) == ALL_NODES
    assert found["left"].startswith("took 0.")
    # A node that is skipped keeps its time.
    assert project.run() == {}
    assert times(project) == found


def test_a_node_that_is_out_of_date_keeps_its_time_without_its_record(project):
    slow_project(project).run()
    before = durations_of(project).read("left")
    project.params["second"] = {"shift": 7}  # `join` fails
    with pytest.raises(ZeroDivisionError):
        project.run()
    assert not (project.data / "records" / "join.json").exists()
    assert times(project)["join"].startswith("took ")
    # `left` ran once more.
    assert durations_of(project).read("left") != before


def test_a_killed_or_failed_run_leaves_the_time_and_no_record(project):
    project.run()
    set_times(project, join=90.0)
    project.write_nodes("== 13", "== 7")
    with pytest.raises(ZeroDivisionError):
        project.run()
    planned = planned_lines(explained(project))
    assert planned["join"] == ("took 1 min 30 s", "there is no record that it finished here")


def test_records_of_before_are_read_as_of_unknown_time_and_nothing_runs_again(project):
    project.run()
    shutil.rmtree(project.data / "records" / "durations")
    assert project.run() == {}
    assert set(times(project).values()) == {""}
    assert "This takes" not in explained(project, force=True)
    # Neither the version nor the fields of a record have changed.
    assert VERSION == 3
    assert "seconds" not in NodeRecord.__dataclass_fields__

    set_times(project, left=2.0)
    assert times(project) == {**dict.fromkeys(ALL_NODES, "unknown"), "left": "took 2.0 s"}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_time_is_unknown_and_measured_again(project, kind: str):
    project.run()
    file = project.data / "records" / "durations" / "left.json"
    other = file.with_name("right.json")
    content = other.read_bytes()
    damage([file, other], 0.0, 0.6, kind)
    assert durations_of(project).read("left") is None
    assert other.read_bytes() == content
    assert project.run() == {}
    project.params["second"] = {"shift": 2}
    project.run()
    assert durations_of(project).read("left") is not None


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), True, "12", None])
def test_a_time_that_is_none_is_unknown(tmp_path, seconds):
    write_checked(
        tmp_path / "durations" / "node.json",
        {"node": "node", "seconds": seconds, "is_complete": True},
    )
    assert NodeDurations(tmp_path).read("node") is None


def test_a_disk_that_refuses_a_time_stops_no_run(project):
    (project.data / "records").mkdir(parents=True)
    (project.data / "records" / "durations").write_text("a file in the place of the folder")
    assert set(project.run()) == ALL_NODES
    assert project.run() == {}
    assert durations_of(project).read("left") is None


@pytest.mark.parametrize(
    ("known", "new", "expected"),
    [
        (None, Duration("node", 1.0, False), 1.0),
        (Duration("node", 5.0, True), Duration("node", 1.0, True), 1.0),
        (Duration("node", 5.0, True), Duration("node", 1.0, False), 5.0),
        (Duration("node", 5.0, False), Duration("node", 1.0, False), 5.0),
        (Duration("node", 5.0, True), Duration("node", 9.0, False), 9.0),
        (Duration("node", 5.0, False), Duration("node", 1.0, True), 1.0),
    ],
)
def test_the_time_of_a_part_replaces_a_shorter_one_alone(tmp_path, known, new, expected):
    durations = NodeDurations(tmp_path)
    if known is not None:
        durations.write(known)
    durations.write(new)
    assert durations.read("node").seconds == expected


@pytest.fixture
def table_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TableProject:
    monkeypatch.syspath_prepend(str(tmp_path))
    return TableProject(tmp_path, f"pack_{abs(hash(tmp_path)) % 10**8}")


def test_a_table_of_which_a_part_was_there_took_that_long_or_more(table_project):
    project = table_project
    project.run()
    assert durations_of(project).read("table").is_complete
    shards = sorted((project.data / "table").glob("part-*"))
    assert len(shards) == 3
    set_times(project, table=50.0)
    shards[0].unlink()
    # Only the missing part is made, and the time of all three is still the better estimate.
    assert "table" in project.run()
    assert durations_of(project).read("table") == Duration("table", 50.0, is_complete=True)

    shutil.rmtree(project.data / "records" / "durations")
    shards[0].unlink()
    project.run()
    assert not durations_of(project).read("table").is_complete
    assert times(project)["table"].endswith(" or more")

    # All parts have other names.
    project.params["first"] = {"number": 5}
    project.run()
    assert durations_of(project).read("table").is_complete
    project.run(IncrementalRunner(force=True))
    assert durations_of(project).read("table").is_complete


def test_a_training_that_resumed_took_that_long_or_more(project):
    checkpoint = project.data / "checkpoints" / "left" / "update-7.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    project.run()
    assert not durations_of(project).read("left").is_complete
    assert durations_of(project).read("right").is_complete


# --- the pilot ------------------------------------------------------------------------------------


def test_what_was_measured_comes_before_what_was_forecast(project):
    seconds = {"left": 40, "join": 0, "elsewhere": 9}
    forecast(project, {"forecast": {"seconds": seconds, "disk_bytes": 7}, "about": "a pilot"})
    first = times(project)
    assert first["left"] == "about 40 s by the pilot"
    assert first["join"] == "about less than 0.1 s by the pilot"
    assert first["right"] == "unknown"
    assert "elsewhere" not in first

    project.run()
    shutil.rmtree(project.data / "records" / "durations")
    set_times(project, left=12.0)
    second = times(project)
    assert second["left"] == "took 12 s"
    assert second["join"] == "about less than 0.1 s by the pilot"


def test_a_forecast_that_does_not_exist_yet_is_none(project):
    forecast(project, {"forecast": {"seconds": {}}})
    (project.data / "pilot.json").unlink()
    assert set(times(project).values()) == {""}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "JSON"),
        ("[]", "no mapping `forecast.seconds`"),
        ("null", "no mapping `forecast.seconds`"),
        ({"forecast": 3}, "no mapping `forecast.seconds`"),
        ({"forecast": {"seconds": [1]}}, "no mapping `forecast.seconds`"),
        ({"forecast": {"seconds": {"left": "1"}}}, "of left is '1', not a duration"),
        ({"forecast": {"seconds": {"right": 1, "left": -1}}}, "of left is -1, not a duration"),
        ('{"forecast": {"seconds": {"left": NaN}}}', "of left is nan, not a duration"),
        ({"forecast": {"seconds": {"left": True}}}, "of left is True, not a duration"),
    ],
)
def test_a_forecast_that_cannot_be_read_costs_a_warning(project, caplog, content, fault):
    forecast(project, content)
    assert set(times(project).values()) == {""}
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    message = record.getMessage()
    assert message.startswith("the forecast in `pilot` is not used: ")
    assert fault in message
    assert message.endswith("Run the pilot again, or delete the file")


def test_without_records_the_forecast_is_still_shown(project):
    forecast(project, {"forecast": {"seconds": {"left": 40}}})
    entries = project.entries()
    del entries["node_records"]
    project.entries = lambda: entries
    assert times(project)["left"] == "about 40 s by the pilot"


# --- totals ---------------------------------------------------------------------------------------


def test_the_totals_name_what_they_are_made_of(project):
    project.run()
    shutil.rmtree(project.data / "records" / "durations")
    set_times(project, start=3.0, left=10.0, join=20.0)
    forecast(project, {"forecast": {"seconds": {"right": 100, "left": 999}}})
    project.params["first"] = {"number": 4}
    assert total(project) == (
        "5 of 5 nodes would run. This takes about 2 min 13 s. 33 s of it were measured when the "
        "nodes last ran, and differ with other parameters, inputs or processors. 1 min 40 s of it "
        "were forecast by the pilot. 2 min 10 s of it are for nodes that run only if an input "
        "changes. The time of 1 node is not known, and not included."
    )


def test_a_plan_without_work_has_no_total(project):
    project.run()
    assert total(project) == "Nothing to do: all 5 nodes are up to date."
    assert total_sentences([], [], {"left": Estimate(1.0, is_measured=True)}) == []
    assert total_sentences(["right"], [], {"left": Estimate(1.0, is_measured=True)}) == []


def test_the_total_of_a_part_is_a_lower_limit():
    known = {"left": Estimate(30.0, is_measured=True, is_complete=False)}
    sentences = total_sentences(["left", "right", "join"], [], known)
    assert sentences[0] == "This takes about 30 s, or more."
    assert sentences[1].startswith("It was measured when the nodes last ran")
    assert sentences[2] == "The time of 2 nodes is not known, and not included."


def test_a_forced_run_is_the_sum_of_all(project):
    project.run()
    set_times(project, **dict.fromkeys(ALL_NODES, 60.0))
    last = explained(project, force=True).splitlines()[-1]
    assert last.startswith("5 of 5 nodes would run. This takes about 5 min 0 s. It was measured")
    # Kedro's own runner has no records of its own, but takes as long.
    last = explained(project, instead_of="SequentialRunner").splitlines()[-1]
    assert "This takes about 5 min 0 s." in last
