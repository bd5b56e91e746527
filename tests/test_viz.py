"""kedro-viz builds the project's page without a network, and what it shows is in order."""

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

# Python imports it at start-up from PYTHONPATH: whatever is not on this machine cannot be reached.
NO_NETWORK = """
import socket
from pathlib import Path

Path(__file__).with_name("was_imported").touch()
connect, lookup = socket.socket.connect, socket.getaddrinfo


def only_here(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
        raise OSError(f"no network: {address}")
    return connect(self, address)


def only_names_of_here(host, *arguments, **options):
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        raise socket.gaierror(f"no network: {host}")
    return lookup(host, *arguments, **options)


socket.socket.connect, socket.getaddrinfo = only_here, only_names_of_here
"""
STAGES = {
    "data_ingestion", "teacher", "feature_extraction", "pu_training", "pool_scoring", "subset_materialization",
    "class_weighting", "distillation", "random_baseline", "evaluation", "reporting",
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `kedro viz build` makes of a copy of the project."""
    folder = tmp_path_factory.mktemp("viz")
    for name in ("conf", "src"):
        shutil.copytree(
            PROJECT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, folder)
    (folder / "start").mkdir()
    (folder / "start" / "sitecustomize.py").write_text(NO_NETWORK)
    result = subprocess.run(
        [sys.executable, "-m", "kedro", "viz", "build"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder / "start")}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert (folder / "start" / "was_imported").exists()
    return folder / "build"


@pytest.fixture(scope="module")
def graph(page: Path) -> dict:
    return json.loads((page / "api" / "main").read_text())


def test_the_page_and_every_pipeline_are_there(page, graph):
    assert "<html" in (page / "index.html").read_text()
    assert {pipeline["id"] for pipeline in graph["pipelines"]} >= STAGES | {"__default__", "full"}
    for name in STAGES | {"full"}:
        assert json.loads((page / "api" / "pipelines" / name).read_text())["nodes"], name


def test_every_dataset_has_a_layer_and_data_flows_down_through_them(graph):
    layer_of = {node["id"]: node["layer"] for node in graph["nodes"] if node["type"] == "data"}
    assert len(layer_of) >= 30
    assert None not in layer_of.values()
    place = {layer: number for number, layer in enumerate(graph["layers"])}
    tasks = {node["id"] for node in graph["nodes"] if node["type"] == "task"}
    upward = [
        (before["source"], after["target"])
        for before in graph["edges"]
        for after in graph["edges"]
        if before["target"] == after["source"]
        and before["target"] in tasks
        and before["source"] in layer_of
        and after["target"] in layer_of
        and place[layer_of[before["source"]]] > place[layer_of[after["target"]]]
    ]
    assert upward == []


def test_each_stage_folds_into_one_box(graph):
    assert set(graph["modular_pipelines"]) == STAGES | {"__root__"}
    boxes = {child["id"] for child in graph["modular_pipelines"]["__root__"]["children"]}
    tasks = {node["id"] for node in graph["nodes"] if node["type"] == "task"}
    assert boxes >= STAGES
    assert not boxes & tasks  # no node stands outside a box
    assert {tag["id"] for tag in graph["tags"]} >= {"gpu", "data", "report"}
