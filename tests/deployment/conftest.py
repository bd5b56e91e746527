"""The stages of the pipeline, as Kedro knows them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.deployment.builders import PROJECT

# Facts about the stages, read in another process, because Kedro keeps one project per process.
SURVEY = """
import json
from pathlib import Path
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

bootstrap_project(Path.cwd())
full = pipelines["full"]
needs = {}
stage_of = {}
for group in full.group_nodes_by("namespace"):
    needs[group.name] = sorted(group.dependencies)
    for node in group.nodes:
        stage_of[node] = group.name
writers = {}
for node in full.nodes:
    for dataset in node.outputs:
        writers[dataset] = stage_of[node.name]
crossing = set()
gpu = set()
for node in full.nodes:
    stage = stage_of[node.name]
    if "gpu" in node.tags:
        gpu.add(stage)
    for dataset in node.inputs:
        if writers.get(dataset, stage) != stage:
            crossing.add(dataset)
types = {}
saved = set()
with KedroSession.create(env="base") as session:
    catalog = session.load_context().catalog
    # Entries of dataset factories exist once they are asked for by name.
    for name in {*writers, *catalog.keys()}:
        dataset = catalog[name]
        types[name] = type(dataset).__name__
        if getattr(dataset, "_filepath", None) or getattr(dataset, "filepath", None):
            saved.add(name)
survey = {"needs": needs, "gpu": sorted(gpu), "crossing": sorted(crossing)}
print(json.dumps({**survey, "saved": sorted(saved), "types": types}))
"""


@pytest.fixture(scope="session")
def survey() -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", SURVEY], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    # Kedro may print before the facts.
    *_, last_line = result.stdout.splitlines()
    return json.loads(last_line)
