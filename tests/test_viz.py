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
    """The graph of the pipeline that the page shows first."""
    file = page / "api" / "main"
    return json.loads(file.read_text())


def ids_of(records: list[dict]) -> set[str]:
    return {record["id"] for record in records}


def nodes_of_type(graph: dict, kind: str) -> list[dict]:
    """Return the nodes that are tasks, data or parameters."""
    return [node for node in graph["nodes"] if node["type"] == kind]


def test_the_page_lists_every_pipeline(page, graph):
    front_page = (page / "index.html").read_text()
    assert "<html" in front_page

    listed = [pipeline["id"] for pipeline in graph["pipelines"]]
    assert set(listed) >= STAGES | {"__default__", "full"}
    # In the same order every time.
    assert listed == sorted(listed)


@pytest.mark.parametrize("name", sorted(STAGES | {"full"}))
def test_every_pipeline_has_a_graph_with_nodes(page, name):
    file = page / "api" / "pipelines" / name
    pipeline = json.loads(file.read_text())
    assert pipeline["nodes"]


@pytest.fixture(scope="module")
def layer_positions(graph: dict) -> dict[str, int]:
    """Dataset -> the position of its layer, from the top of the page."""
    positions = {}
    for dataset in nodes_of_type(graph, "data"):
        layer = dataset["layer"]
        assert layer is not None, dataset
        positions[dataset["id"]] = graph["layers"].index(layer)
    return positions


def test_data_flows_down_through_the_layers(graph, layer_positions):
    assert len(layer_positions) >= 30

    tasks = ids_of(nodes_of_type(graph, "task"))
    inputs: dict[str, list[str]] = {task: [] for task in tasks}
    outputs: dict[str, list[str]] = {task: [] for task in tasks}
    for edge in graph["edges"]:
        source = edge["source"]
        target = edge["target"]
        # Parameters are sources, too, but have no layer.
        if target in tasks and source in layer_positions:
            inputs[target].append(source)
        if source in tasks and target in layer_positions:
            outputs[source].append(target)

    for task in tasks:
        for source in inputs[task]:
            for target in outputs[task]:
                assert layer_positions[source] <= layer_positions[target], (source, target)


def test_nodes_show_the_code_that_they_run(page, graph):
    functions = {}
    for task in nodes_of_type(graph, "task"):
        about = json.loads((page / "api" / "nodes" / task["id"]).read_text())
        functions[task["name"]] = about["code"].strip().partition("(")[0]
    assert functions["find_class_prior"] == "def find_class_prior"
    # Made by a function that other stages call, too.
    assert functions["distill_student"] == "def distill_student"
    assert all(code.startswith("def ") for code in functions.values())


def test_each_stage_folds_into_one_box_and_no_node_is_outside(graph):
    modular_pipelines = graph["modular_pipelines"]
    assert set(modular_pipelines) == STAGES | {"__root__"}

    # What is drawn at the top level: boxes, and nodes that belong to no stage.
    top_level = ids_of(modular_pipelines["__root__"]["children"])
    tasks = ids_of(nodes_of_type(graph, "task"))
    assert top_level >= STAGES
    assert not top_level & tasks


def test_nodes_can_be_filtered_by_their_tags(graph):
    assert ids_of(graph["tags"]) >= {"gpu", "data", "report"}
