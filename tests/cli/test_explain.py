"""`kedro explain` on the command line: reasons and times, before and after a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.incremental.projects import planned_lines

ENTRIES = """
node_records:
  type: pu_kd_pipeline.datasets.FolderDataset
  filepath: ${runtime_params:data,${globals:data}}/node_records
pilot:
  type: json.JSONDataset
  filepath: ${runtime_params:data,${globals:data}}/08_reporting/pilot.json
"""
TRAIN = "pu_training.train"
EVALUATE = "evaluation.evaluate"


@pytest.fixture
def printed_by(kedro, tiny_project, tmp_path):
    """A function that runs a command of a project with records, and returns what it prints."""
    conf = tmp_path / "conf"
    shutil.copytree(tiny_project / "conf", conf)
    with (conf / "base" / "catalog.yml").open("a") as catalog:
        catalog.write(ENTRIES)

    def print_it(command: str, data: Path, epochs: int) -> str:
        # A file that a parameter names, and that its node writes, would make it run every time.
        given = f"data={data},tracking=false,training.epochs={epochs},training.diary=/dev/null"
        process = kedro(command, f"--conf-source={conf}", f"--params={given}")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        return out

    return print_it


def test_explain_prints_what_a_pilot_forecast_and_then_what_a_run_took(printed_by, tmp_path):
    data = tmp_path / "data"
    pilot = data / "08_reporting" / "pilot.json"
    pilot.parent.mkdir(parents=True)
    pilot.write_text(json.dumps({"forecast": {"seconds": {TRAIN: 40.2}}}))
    before = printed_by("explain", data, 3)
    plan = planned_lines(before)
    assert plan[TRAIN] == ("about 40 s by the pilot", "there is no record that it finished here")
    assert plan[EVALUATE][0] == "unknown"
    assert "2 of 2 nodes would run. This takes about 40 s. It was forecast by the pilot." in before
    assert not (data / "node_records").exists()

    printed_by("run", data, 3)
    after = printed_by("explain", data, 3)
    assert "Nothing to do: all 2 nodes are up to date.\n" in after
    for time, reason in planned_lines(after).values():
        assert time.startswith("took ")
        assert reason == "-"

    changed = printed_by("explain", data, 4)
    time, reason = planned_lines(changed)[TRAIN]
    assert time.startswith("took ")
    assert reason == "parameter training.epochs 3 → 4"
    assert "2 of 2 nodes would run. This takes about" in changed
    assert "by the pilot" not in changed
