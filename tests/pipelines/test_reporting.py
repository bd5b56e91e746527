"""The stage `reporting`: its node, its outputs, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from typing import get_type_hints

from kedro.io import DataCatalog, MemoryDataset

from pu_kd_pipeline.hooks.preflight import PreflightHooks
from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams, ImageSource
from pu_kd_pipeline.params.reporting import ReportingParams
from pu_kd_pipeline.pipelines import full
from pu_kd_pipeline.pipelines.reporting.nodes import report_run
from pu_kd_pipeline.pipelines.reporting.pipeline import create_pipeline
from pu_kd_pipeline.reporting.figures import REPORT_FIGURES
from tests.reporting.toy_run import report

IMPORT_AND_DRAW = """
import sys

import pu_kd_pipeline.pipelines.reporting as stage
stage.create_pipeline()
from pu_kd_pipeline.reporting import html
from pu_kd_pipeline.reporting.class_figures import plot_class_weights
assert not {"matplotlib", "torch", "mlflow", "jinja2"} & set(sys.modules)

import pandas as pd
table = pd.DataFrame({"class_name": ["a", "b"], "teacher_mass": [1., 2.], "raw_weight": 1.,
                      "weight": 1., "is_clipped": False})
plot_class_weights(table).canvas.draw()
assert "matplotlib.pyplot" not in sys.modules
"""


def test_the_node_returns_every_output_of_the_pipeline() -> None:
    [node] = create_pipeline().nodes

    assert node.name == "reporting.report_run"

    # The page shows the figures, and both are outputs of one node.
    expected = [figure.name for figure in REPORT_FIGURES]
    expected.append("report")

    assert node.outputs == expected
    assert list(report()) == expected


def test_the_node_names_the_type_of_its_parameters() -> None:
    # Kedro checks parameters by this annotation, and passes a plain dict without it.
    assert get_type_hints(report_run)["params"] is ReportingParams


def test_the_report_shows_the_blocks_that_full_reads() -> None:
    read = {name for name in full.create_pipeline().inputs() if name.startswith("param")}
    # Who works on shards changes no result.
    read.remove("params:engine")

    [node] = create_pipeline().nodes
    shown = {name for name in node.inputs if name.startswith("param")}
    assert shown == read

    # Each is checked here as in the stage that it belongs to, so that it has the same values.
    types = get_type_hints(report_run)
    arguments = list(types)[-len(shown) - 1 : -1]
    for argument, name in zip(arguments, node.inputs[-len(shown) :], strict=True):
        assert name in (f"params:{argument}", "params:reporting")
        assert issubclass(types[argument], Block)


def test_a_report_needs_neither_sources_nor_weights() -> None:
    missing = ImageSource.model_validate({"type": "folder", "path": "/no/such/folder"})
    ingestion = DataIngestionParams.model_construct(
        labeled=(missing,), pool=(), test=(), teacher_training=()
    )
    catalog = DataCatalog()
    stage = create_pipeline()
    for name in stage.inputs():
        catalog[name] = MemoryDataset(ingestion)
    # It would be refused where a node opened the folder.
    PreflightHooks().before_pipeline_run({"runner": "SequentialRunner"}, stage, catalog)


def test_importing_the_stage_loads_no_plotting_and_drawing_never_loads_pyplot() -> None:
    # In a process of its own: the tests have loaded all of these.
    command = [sys.executable, "-c", IMPORT_AND_DRAW]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
