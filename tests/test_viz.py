"""kedro-viz builds the project's page without a network, and its graph is in order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

pytest.importorskip("kedro_viz", reason="kedro-viz comes with the extra `viz`")

# A `sitecustomize.py`, which Python imports at start-up: other machines cannot be reached.
NO_NETWORK = """
import socket
from pathlib import Path

Path(__file__).with_name("was_imported").touch()
connect = socket.socket.connect
lookup = socket.getaddrinfo


def connect_locally(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
        raise OSError(f"no network: {address}")
    return connect(self, address)


def look_up_local_names(host, *arguments, **options):
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        raise socket.gaierror(f"no network: {host}")
    return lookup(host, *arguments, **options)


socket.socket.connect = connect_locally
socket.getaddrinfo = look_up_local_names
"""
STAGES = {
    "data_ingestion",
    "teacher",
    "feature_extraction",
    "pu_training",
    "pool_scoring",
    "subset_materialization",
    "class_weighting",
    "distillation",
    "random_baseline",
    "evaluation",
    "reporting",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `kedro viz build` makes of a copy of the project."""
    folder = tmp_path_factory.mktemp("viz")
    build_files = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("conf", "src"):
        shutil.copytree(PROJECT / name, folder / name, ignore=build_files)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, folder)
    start_up = folder / "start"
    start_up.mkdir()
    (start_up / "sitecustomize.py").write_text(NO_NETWORK)
    result = subprocess.run(
        [sys.executable, "-m", "kedro", "viz", "build"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(start_up)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (start_up / "was_imported").exists()
    return folder / "build"


@pytest.fixture(scope="module")
def graph(page: Path) -> dict:
    return json.loads((page / "api" / "main").read_text())


def node_ids(graph: dict, kind: str) -> set[str]:
    return {node["id"] for node in graph["nodes"] if node["type"] == kind}


def test_the_page_has_every_pipeline(page, graph):
    assert "<html" in (page / "index.html").read_text()

    pipelines = {pipeline["id"] for pipeline in graph["pipelines"]}

    assert pipelines >= STAGES | {"__default__", "full"}

    for name in STAGES | {"full"}:
        pipeline = json.loads((page / "api" / "pipelines" / name).read_text())
        assert pipeline["nodes"], name


def test_every_dataset_has_a_layer_and_data_flows_down_through_them(graph):
    # Dataset -> the position of its layer, from the top of the page.
    position: dict[str, int] = {}
    for node in graph["nodes"]:
        if node["type"] == "data":
            assert node["layer"] is not None, node
            position[node["id"]] = graph["layers"].index(node["layer"])

    assert len(position) >= 30

    # Task -> its inputs and outputs; parameters have no layer.
    inputs: dict[str, list[str]] = {task: [] for task in node_ids(graph, "task")}
    outputs: dict[str, list[str]] = {task: [] for task in inputs}
    for edge in graph["edges"]:
        if edge["target"] in inputs and edge["source"] in position:
            inputs[edge["target"]].append(edge["source"])
        if edge["source"] in outputs and edge["target"] in position:
            outputs[edge["source"]].append(edge["target"])
    for task in inputs:
        for source in inputs[task]:
            for target in outputs[task]:
                assert position[source] <= position[target], (source, target)


def test_each_stage_folds_into_one_box_and_no_node_is_outside(graph):
    assert set(graph["modular_pipelines"]) == STAGES | {"__root__"}

    children = graph["modular_pipelines"]["__root__"]["children"]
    boxes = {child["id"] for child in children}

    assert boxes >= STAGES
    assert not boxes & node_ids(graph, "task")
    assert {tag["id"] for tag in graph["tags"]} >= {"gpu", "data", "report"}
