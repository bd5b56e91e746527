"""The project as a whole: pipelines, catalog, parameters and packaging agree with each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
STAGES = {
    "data_ingestion",
    "teacher",
    "feature_extraction",
    "pu_training",
    "pool_scoring",
    "subset_materialization",
    "class_weighting",
    "distillation",
    "evaluation",
    "reporting",
}
# Run in its own process, because Kedro keeps one project per process. Each pipeline is requested as
# `kedro run` does it: with a filter that makes Kedro import nothing else.
SURVEY = """
import json
from pathlib import Path
from typing import get_type_hints
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from pydantic import BaseModel

root = Path.cwd()
bootstrap_project(root)
survey = {"pipelines": {}, "untyped": [], "parameters": []}
for name in sorted(pipelines):
    pipelines.set_requested([name])
    survey["pipelines"][name] = [node.name for node in pipelines[name].nodes]
pipelines.set_requested(None)
nodes = {}
datasets = set()
for pipeline in pipelines.values():
    datasets |= pipeline.datasets()
    for node in pipeline.nodes:
        nodes[node.name] = node
for node in nodes.values():
    hints = list(get_type_hints(node.func).values())
    for position, dataset in enumerate(node.inputs):
        if dataset.startswith("params:"):
            survey["parameters"].append(dataset.removeprefix("params:"))
            if not (isinstance(hints[position], type) and issubclass(hints[position], BaseModel)):
                survey["untyped"].append([node.name, dataset])

survey["tags"] = sorted({tag for node in nodes.values() for tag in node.tags})
survey["without_namespace"] = sorted(node.name for node in nodes.values() if not node.namespace)
with KedroSession.create(project_path=root, env="base") as session:
    context = session.load_context()
    # Entries that no pipeline has, such as the folder of checkpoints, and those made by factories.
    names = {name for name in context.config_loader["catalog"] if "{" not in name} | datasets
    survey["in_memory"] = []
    survey["layers"] = {}
    for name in sorted(names):
        if name == "parameters" or name.startswith("params:"):
            continue
        if name not in context.catalog:
            survey["in_memory"].append(name)
            continue
        metadata = context.catalog.get(name).metadata or {}
        survey["layers"][name] = metadata.get("kedro-viz", {}).get("layer")
    survey["blocks"] = sorted(context.config_loader["parameters"])
survey["edges"] = []
for node in nodes.values():
    for source in node.inputs:
        for target in node.outputs:
            survey["edges"].append([source, target])
print("SURVEY" + json.dumps(survey))
"""


@pytest.fixture(scope="module")
def survey() -> dict:
    """What Kedro knows of this project."""
    result = subprocess.run(
        [sys.executable, "-c", SURVEY], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.rpartition("SURVEY")[2])


def test_every_registered_pipeline_loads_under_its_own_name(survey):
    pipelines = survey["pipelines"]

    assert set(pipelines) >= {"__default__", "full", *STAGES}
    # A pipeline that Kedro did not find has no nodes.
    assert all(pipelines.values())


def test_full_is_the_default(survey):
    pipelines = survey["pipelines"]
    assert pipelines["__default__"] == pipelines["full"]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_full_contains_every_stage(survey, stage):
    nodes_of_full = set(survey["pipelines"]["full"])
    nodes_of_stage = set(survey["pipelines"][stage])
    assert nodes_of_stage <= nodes_of_full


def test_every_dataset_is_persisted_and_has_a_layer(survey):
    layers = survey["layers"]

    assert survey["in_memory"] == []
    assert len(layers) > 30
    assert None not in layers.values()


def test_no_dataset_leads_back_to_an_earlier_layer(survey):
    layers = survey["layers"]
    predecessors: dict[str, set[str]] = {}
    for source, target in survey["edges"]:
        # Parameters have no layer.
        if source not in layers:
            continue
        source_layer = layers[source]
        target_layer = layers[target]
        if source_layer != target_layer:
            predecessors.setdefault(target_layer, set()).add(source_layer)

    # Raises for a cycle; kedro-viz would then draw no layers at all.
    order = list(TopologicalSorter(predecessors).static_order())
    assert order[0] == "intermediate"


def test_every_parameter_is_a_typed_block_and_every_block_is_used(survey):
    read_blocks = {name.split(".")[0] for name in survey["parameters"]}

    assert survey["untyped"] == []
    assert read_blocks <= set(survey["blocks"])


def test_nodes_have_namespaces_and_the_stated_tags(survey):
    assert survey["without_namespace"] == []
    assert {"gpu", "data", "report"} <= set(survey["tags"])


def test_every_dependency_is_pinned():
    pinned = set()
    constraints = (PROJECT / "constraints.txt").read_text()
    for line in constraints.splitlines():
        if "==" in line:
            pinned.add(_package_name(line))

    project = _pyproject()["project"]
    required = set()
    for requirements in [project["dependencies"], *project["optional-dependencies"].values()]:
        required.update(map(_package_name, requirements))
    # An extra may contain another one.
    required.remove(project["name"])

    assert required - pinned == set()
    # A local version such as 2.9.1+cpu is on no public index.
    assert "+" not in "".join(sorted(pinned))


def _package_name(requirement: str) -> str:
    """Return the name in a requirement, as package indexes compare names."""
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    name = match[0].lower()
    return name.replace("_", "-")


def _pyproject() -> dict:
    text = (PROJECT / "pyproject.toml").read_text()
    return tomllib.loads(text)


def _with_included(names: set[str]) -> set[str]:
    """Return extras of this project, and those that they include."""
    extras = _pyproject()["project"]["optional-dependencies"]
    found: set[str] = set()
    to_visit = set(names)
    while to_visit:
        name = to_visit.pop()
        found.add(name)
        for requirement in extras[name]:
            included = re.fullmatch(r"pu-kd-pipeline\[([\w,-]+)\]", requirement)
            if included:
                to_visit |= set(included[1].split(",")) - found
    return found


def test_the_environment_of_the_checks_has_all_that_runs_need():
    makefile = (PROJECT / "Makefile").read_text()
    lines = re.findall(r"^\$\((\w*READY)\): EXTRAS := (\S+)$", makefile, flags=re.MULTILINE)
    extras = {name: _with_included(set(listed.split(","))) for name, listed in lines}

    assert set(extras) == {"READY", "CHECKS_READY"}
    # After `make test`, `make run` has nothing to install.
    assert extras["READY"] < extras["CHECKS_READY"]


@pytest.mark.xdist_group("together")
def test_groups_of_tests_are_kept_together(request):
    # Otherwise each process of pytest makes what a group shares, such as `finished_run`.
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("pytest runs without --dist loadgroup")
    assert request.node.nodeid.endswith("@together")


def test_telemetry_is_disabled():
    settings = yaml.safe_load((PROJECT / ".telemetry").read_text())
    tools = _pyproject()["tool"]

    assert settings == {"consent": False}
    assert "kedro_telemetry" not in tools


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    # An interpreter that reports another version than its own.
    old_python = tmp_path / "python3"
    pretend = "import sys; sys.version_info = (3, 9, 1, 'final', 0)"
    script = f'#!/bin/sh\nexec {sys.executable} -c "{pretend}\n$2"\n'
    old_python.write_text(script)
    old_python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        content = (PROJECT / name).read_bytes()
        (tmp_path / name).write_bytes(content)

    command = ["make", f"PYTHON={old_python}", "run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert result.returncode != 0
    assert "is Python 3.9, and 3.11 to 3.13 is needed" in result.stderr
    assert not (tmp_path / ".venv").exists()
