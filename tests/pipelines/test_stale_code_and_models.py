"""Through the command line: edits of code, of package data and of what a teacher is made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, QUICK
from tests.incremental.projects import planned_reasons
from tests.pipelines.test_incremental_full import contents, nodes_that_ran

pytestmark = pytest.mark.xdist_group("finished_run")
NETS = """
from user_layers import Scaled

def build(n_classes, in_channels):
    return Scaled(n_classes, in_channels)
"""
LAYERS = """
from torch import nn

class Scaled(nn.Module):
    def __init__(self, n_classes, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.linear = nn.Linear(4, n_classes)

    def forward(self, images):
        return self.linear(FACTOR * self.conv(images).mean((2, 3)))

FACTOR = 1
"""


class Copy:
    """A copy of the whole project, whose code a test edits, and a data folder."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.data = data
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("src", "conf"):
            shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(PROJECT / name, folder)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / "src" / "pu_kd_pipeline" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def start(self, command: str, pipelines: str, *params: str) -> subprocess.Popen[str]:
        given = ",".join([f"data={self.data}", *QUICK, "tracking=false", *params])
        python_path = os.pathsep.join([str(self.folder / "src"), str(self.folder)])
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "kedro", command),
                *(f"--pipelines={pipelines}", f"--params={given}"),
            ],
            cwd=self.folder,
            env={**os.environ, "COLUMNS": "250", "PYTHONPATH": python_path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, pipelines: str, *params: str) -> dict[str, str]:
        """Run, and return the reasons of the nodes that ran."""
        output = self.finish(self.start("run", pipelines, *params))
        ran = nodes_that_ran(output)
        assert ran or "Nothing to do:" in output, output
        return ran

    def explain(self, pipelines: str, *params: str) -> dict[str, str]:
        """Return the reasons of the nodes that would run."""
        before = sorted(self.data.rglob("*"))
        output = self.finish(self.start("explain", pipelines, *params))
        assert sorted(self.data.rglob("*")) == before
        return planned_reasons(output)

    def finish(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def copy(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = tmp_path_factory.mktemp("copy")
    data = folder / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    return Copy(folder, data)


def test_an_edit_of_a_template_makes_the_pages_again_and_nothing_else(copy):
    copy.edit("reporting/report.html.jinja", '<h2 id="parameters">', '<h2 id="parameters" >')
    reason = "code changed: pu_kd_pipeline:reporting/report.html.jinja"
    # The code that reads templates may read each of them.
    expected = dict.fromkeys(("evaluation.write_certificate", "reporting.report_run"), reason)
    assert copy.explain("full") == expected
    ran = copy.run("full")
    # The certificate has latencies, which are measured again.
    changed = "input certificate changed; "
    ran["reporting.report_run"] = ran["reporting.report_run"].removeprefix(changed)
    assert ran == expected
    report = copy.data / "08_reporting" / "report.html"
    assert '<h2 id="parameters" >' in report.read_text()


def test_kedro_run_and_the_pipeline_full_are_the_same_run(copy):
    for pipelines in ("__default__", "full", "reporting"):
        assert copy.run(pipelines) == {}


def test_code_that_is_edited_while_the_run_trains_is_not_recorded_as_what_ran(copy):
    process = copy.start("run", "random_baseline", "distillation.n_updates=61")
    assert process.stdout is not None
    for line in process.stdout:
        if "random_baseline.weigh_subset_classes" in line or "random_baseline:" in line:
            break
    # Imported at the start, and used by the node that trains.
    copy.edit("params/distillation.py", 'description="', 'description="now: ')
    copy.finish(process)

    ran = copy.run("random_baseline", "distillation.n_updates=61")
    assert (
        "code changed: pu_kd_pipeline.params.distillation"
        in (ran["random_baseline.distill_student"])
    )


def test_an_edit_of_a_module_that_a_factory_imports_reaches_what_the_network_computes(copy):
    (copy.folder / "user_nets.py").write_text(NETS)
    layers = copy.folder / "user_layers.py"
    layers.write_text(LAYERS)
    stages = "teacher,feature_extraction"
    factory = "teacher.architecture=user_nets:build"
    copy.run(stages, factory, "teacher.architecture_options.width=null")
    before = contents(copy.data)

    layers.write_text(LAYERS.replace("FACTOR = 1", "FACTOR = -1"))
    arguments = (stages, factory, "teacher.architecture_options.width=null")
    explained = copy.explain(*arguments)
    ran = copy.run(*arguments)
    assert set(ran) == set(explained)
    assert ran["teacher.prepare_teacher"] == "what teacher.architecture names changed"
    changed = "what teacher_model names changed"
    assert ran["feature_extraction.extract_pool_features"].endswith(changed)

    after = contents(copy.data)
    for name in ("pool_features", "labeled_features"):
        old = {file for file in before if f"/{name}/" in file}
        new = {file for file in after if f"/{name}/" in file}
        assert not {file for file in old & new if file.endswith(".parquet")}
    assert copy.run(*arguments) == {}


def test_an_edit_of_the_card_next_to_weights_is_seen(copy):
    weights = copy.folder / "weights"
    shutil.copytree(copy.data / "06_models" / "student_model", weights)
    path = f"teacher.weights={weights / 'weights.safetensors'}"
    card = ("teacher.architecture=null", "teacher.architecture_options={}")
    copy.run("teacher", path, *card)
    text = (weights / "card.json").read_text()
    (weights / "card.json").write_text(text.replace('"0"', '"zero"'))
    ran = copy.run("teacher", path, *card)
    assert ran == {"teacher.prepare_teacher": "what teacher.weights names changed"}
