"""The summary that ends a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.hooks.catalog import METRICS, REPORT, dataset_path
from pu_kd_pipeline.incremental.runner import EXPLAINING

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


COMPARISON = "comparison_table"


class SummaryHooks:
    """Prints what a run was worth, and where to look further."""

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print the metrics table if this run made it, and the places of the report and of MLflow."""
        if run_params["runner"] == EXPLAINING:
            return
        outputs = pipeline.all_outputs()
        if METRICS in outputs:
            _print_metrics(catalog.load(METRICS))
        if COMPARISON in outputs:
            print(catalog.load(COMPARISON))
        if REPORT in outputs and (path := dataset_path(catalog, REPORT)):
            print(f"Report: {path}")
        if outputs & {METRICS, REPORT} and (path := dataset_path(catalog, METRICS)):
            folder = path.parents[1]
            where = "" if folder == Path.cwd() / "data" else f" DATA={folder}"
            mlflow = os.environ.get("MLFLOW_TRACKING_URI") or f"make mlflow{where}"
            print(f"MLflow: {mlflow}    Pipeline: make viz")


def _print_metrics(metrics: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pu_kd_pipeline.reporting.summary import model_rows, selection_rows

    console = Console()
    header, *rows = model_rows(metrics)
    table = Table(*header[:1], box=box.SIMPLE_HEAD)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    facts = Table("selection", "", box=box.SIMPLE_HEAD)
    for row in selection_rows(metrics):
        facts.add_row(*row)
    console.print(table, *([facts] if facts.row_count else []))
