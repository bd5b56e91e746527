"""The stages `pilot` and `student_search` on the demo, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pu_kd_pipeline.errors import ExitCode
from tests.conftest import run_kedro
from tests.pipelines.finished_run import MODEL_OUTPUT, REPORTING

pytestmark = pytest.mark.xdist_group("finished_run")
SHORT = (
    "pilot.lengths=[10,20]",
    "pilot.n_rounds=2",
    "pilot.max_pool_images=1500",
    "pilot.yardstick_share=0.3",
)


@pytest.fixture(scope="module")
def pilot_run(finished_run, tmp_path_factory) -> Path:
    """The data folder of a finished pilot, with what the run printed."""
    data = tmp_path_factory.mktemp("pilot") / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    result = run_kedro("--pipeline=pilot", data=data, params=SHORT)
    assert result.returncode == 0, result.stdout + result.stderr
    (data / "pilot_output.txt").write_text(result.stdout)
    return data


def test_a_pilot_ends_with_a_verdict_and_a_command(pilot_run):
    found = json.loads((pilot_run / REPORTING / "pilot.json").read_text())
    assert found["judgment"]["verdict"] in ("gain", "nothing", "unknown")
    assert {trial["n_updates"] for trial in found["trials"]} == {10, 20}
    printed = (pilot_run / "pilot_output.txt").read_text()
    assert "Next: kedro run --pipeline=full" in printed
    assert "pilot.html" in printed
    page = (pilot_run / REPORTING / "pilot.html").read_text()
    assert "What limits this pilot" in page
    assert "Traceback" not in page
    # Nothing but the page itself: it is opened without a network.
    assert "http://" not in page
    assert "https://" not in page


def test_its_parameters_are_those_of_an_environment(pilot_run):
    found = json.loads((pilot_run / REPORTING / "pilot.json").read_text())
    text = (pilot_run / REPORTING / "pilot_parameters.yml").read_text()
    assert (yaml.safe_load(text) or {}) == found["parameters"]


def test_a_second_pilot_does_nothing(pilot_run):
    trials = pilot_run / MODEL_OUTPUT / "pilot_trials.parquet"
    before = trials.stat().st_mtime_ns
    result = run_kedro("--pipeline=pilot", data=pilot_run, params=SHORT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert trials.stat().st_mtime_ns == before


def test_test_images_without_labels_do_not_stop_a_pilot(finished_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    unlabeled = "data_ingestion.test=[{type: demo, part: test, labels: ignore}]"
    result = run_kedro("--pipeline=pilot", data=data, params=(*SHORT, unlabeled))
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_rule_that_does_not_exist_is_refused(finished_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    result = run_kedro("--pipeline=pilot", data=data, params=("pilot.candidates.nnpu.rule=nnpx",))
    assert result.returncode == ExitCode.USER_ERROR
    assert "pilot.candidates.nnpu" in result.stderr
    assert "nnpx" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_student_for_a_budget(pilot_run):
    changes = (
        "student_search.lengths=[10,20]",
        "student_search.n_rounds=2",
        "student_search.max_pool_images=1500",
        "student_search.yardstick_share=0.3",
        "student_search.latency_repeats=2",
        "student_search.families.cifar_resnet=null",
        "student_search.families.torchvision=null",
        "student_search.mflops=0.5",
    )
    result = run_kedro("--pipeline=student_search", data=pilot_run, params=changes)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "is the student to train" in result.stdout
    found = json.loads((pilot_run / REPORTING / "student_search.json").read_text())
    assert found["costs"][found["winner"]]["flops"] <= 0.5e6
    text = (pilot_run / REPORTING / "student_parameters.yml").read_text()
    assert (yaml.safe_load(text) or {}) == found["parameters"]

    refused = run_kedro("--pipeline=student_search", data=pilot_run)
    assert refused.returncode == ExitCode.USER_ERROR
    assert "student_search: there is no limit" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
