"""The project as a whole: its pipelines, its catalog, its parameters and its packaging agree with each other."""

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
# In a process of its own, for Kedro keeps one project per process. Each pipeline is asked for the way `kedro run` does:
# by a filter that makes Kedro import nothing else.
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
nodes = {node.name: node for pipeline in pipelines.values() for node in pipeline.nodes}
for node in nodes.values():
    hints = list(get_type_hints(node.func).values())
    for position, dataset in enumerate(node.inputs):
        if dataset.startswith("params:"):
            survey["parameters"].append(dataset.removeprefix("params:"))
            if not (isinstance(hints[position], type) and issubclass(hints[position], BaseModel)):
                survey["untyped"].append([node.name, dataset])
survey["datasets"] = sorted({name for pipeline in pipelines.values() for name in pipeline.datasets()})
survey["edges"] = [[i, o] for node in nodes.values() for i in node.inputs for o in node.outputs]
survey["tags"] = sorted({tag for node in nodes.values() for tag in node.tags})
survey["without_namespace"] = sorted(node.name for node in nodes.values() if not node.namespace)
with KedroSession.create(project_path=root, env="base") as session:
    loader = session.load_context().config_loader
    survey["catalog"] = {
        name: entry.get("metadata", {}).get("kedro-viz", {}).get("layer") for name, entry in loader["catalog"].items()
    }
    survey["blocks"] = sorted(loader["parameters"])
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
    assert set(survey["pipelines"]) >= {"__default__", "full", *STAGES}
    assert all(survey["pipelines"].values())


def test_full_holds_every_stage_and_is_the_default(survey):
    pipelines = survey["pipelines"]
    assert pipelines["__default__"] == pipelines["full"]
    assert {node for stage in STAGES for node in pipelines[stage]} <= set(pipelines["full"])


def test_every_dataset_is_persisted_and_has_a_layer(survey):
    catalog = survey["catalog"]
    datasets = {name for name in survey["datasets"] if not re.match("params:|parameters$", name)}
    in_memory = {
        name for name in datasets if name not in catalog and not _matches_a_pattern(name, catalog)
    }
    assert in_memory == set()
    assert {name for name, layer in catalog.items() if layer is None} == set()


def test_no_layer_leads_back_to_an_earlier_one(survey):
    """kedro-viz draws no layers at all where they go round in a circle."""
    layers = survey["catalog"]
    after: dict[str, set[str]] = {}
    for source, target in survey["edges"]:
        if source in layers and layers[source] != layers[target]:
            after.setdefault(layers[target], set()).add(layers[source])
    assert next(iter(TopologicalSorter(after).static_order())) == "intermediate"


def _matches_a_pattern(name: str, catalog: dict) -> bool:
    patterns = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(entry)) for entry in catalog if "{" in entry]
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def test_every_parameter_is_a_typed_block_and_every_block_is_used(survey):
    assert survey["untyped"] == []
    assert {name.split(".")[0] for name in survey["parameters"]} <= set(survey["blocks"])


def test_nodes_have_namespaces_and_the_stated_tags(survey):
    assert survey["without_namespace"] == []
    assert {"gpu", "data", "report"} <= set(survey["tags"])


def test_every_dependency_is_pinned():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["viz"], *extras["dev"]]
    names = {
        re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in asked
    }
    assert names - pinned == set()
    assert "+" not in "".join(sorted(pinned))


def test_nobody_is_told_about_our_users():
    assert yaml.safe_load((PROJECT / ".telemetry").read_text()) == {"consent": False}
    assert "kedro_telemetry" not in tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]


def test_an_old_python_is_refused_in_one_sentence(tmp_path):
    """make says which Python it needs before it makes anything."""
    old = tmp_path / "python3"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c \"import sys; sys.version_info = (3, 9, 1, 'final', 0)\n$2\"\n"
    )
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    result = subprocess.run(
        ["make", f"PYTHON={old}", "run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "is Python 3.9, and 3.11 to 3.13 is needed" in result.stderr
    assert not (tmp_path / ".venv").exists()
