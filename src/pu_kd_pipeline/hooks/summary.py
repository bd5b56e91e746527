"""The summary that ends a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.hooks.catalog import METRICS, REPORT, dataset_location, dataset_path
from pu_kd_pipeline.hooks.tracking import tracking_config
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER
from pu_kd_pipeline.masking import visible, without_credentials
from pu_kd_pipeline.params.overrides import with_overrides
from pu_kd_pipeline.params.paths import project_folder
from pu_kd_pipeline.progress import is_terminal

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from rich.console import Console

COMPARISON = "comparison_table"
COMPARISON_PAGE = "comparison_page"
PILOT = "pilot"
PILOT_PAGE = "pilot_page"
STUDENT_SEARCH = "student_search"
STUDENT_SEARCH_PAGE = "student_search_page"
AUDIT = "pool_audit"
EXPORT_REPORT = "export_report"
PREDICTIONS = "predictions"
# Columns of a file or a pipe: more than any line has.
_WIDTH_OF_FILES = 10_000


def is_summarized(pipeline: Pipeline) -> bool:
    """Return whether the summary of a run has more than its last lines."""
    found = {METRICS, COMPARISON, PILOT, STUDENT_SEARCH, AUDIT, EXPORT_REPORT, PREDICTIONS}
    return not found.isdisjoint(pipeline.all_outputs())


class SummaryHooks:
    """Prints the results of a run, and where to find the report and MLflow."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Store the context; its configuration says where MLflow is."""
        self._context = context

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print what this run made: metrics, comparison, the paths of report and tracking."""
        if run_params["runner"] == EXPLAINING_RUNNER:
            return
        outputs = pipeline.all_outputs()
        if METRICS in outputs:
            _print_metrics(catalog.load(METRICS))
        if COMPARISON in outputs:
            table = str(catalog.load(COMPARISON))
            print(visible(table))
        if COMPARISON_PAGE in outputs:
            print(f"Comparison: {dataset_location(catalog, COMPARISON_PAGE)}")
        if PILOT in outputs:
            _print_pilot(
                catalog.load(PILOT), dataset_location(catalog, PILOT_PAGE), _settings(run_params)
            )
        if STUDENT_SEARCH in outputs:
            page = dataset_location(catalog, STUDENT_SEARCH_PAGE)
            _print_student_search(catalog.load(STUDENT_SEARCH), page, _settings(run_params))
        if AUDIT in outputs:
            _print_audit(catalog)
        if EXPORT_REPORT in outputs:
            _print_export(catalog)
        if PREDICTIONS in outputs:
            print(f"Predictions: {dataset_location(catalog, PREDICTIONS)}")
        report = dataset_location(catalog, REPORT)
        if REPORT in outputs and report:
            print(f"Report: {report}")
        metrics_path = dataset_path(catalog, METRICS)
        if outputs & {METRICS, REPORT} and metrics_path:
            data_folder = metrics_path.parents[1]
            hint = _mlflow_hint(self._context, data_folder)
            print(f"MLflow: {hint}    Pipeline: make viz")


def _mlflow_hint(context: KedroContext, data_folder: Path) -> str:
    """Return the server's address, or the command that opens the tracking files of this run."""
    from pu_kd_pipeline.tracking.config import STORE, is_inside, store_folder
    from pu_kd_pipeline.tracking.stores import DATABASE, sqlite_file, store_uri

    config = tracking_config(context)
    folder = store_folder(config, context.project_path)
    uri = store_uri(config, folder)
    if sqlite_file(uri) != folder / DATABASE:
        return without_credentials(uri)
    # make reads its Makefile in the project folder, wherever this command was started
    project = project_folder()
    if folder == (project / "data" / STORE).resolve():
        return "make mlflow"
    # The Makefile opens the shared store for any data folder inside the project.
    if folder == (data_folder / STORE).resolve() and not is_inside(data_folder, project):
        return f"make mlflow DATA={data_folder}"
    return f"make mlflow STORE={folder}"


def _console() -> Console:
    """Return a console that breaks lines on a terminal alone: elsewhere, they are searched."""
    from rich.console import Console

    if is_terminal(sys.stdout):
        return Console()
    return Console(width=_WIDTH_OF_FILES)


def _print_metrics(metrics: Mapping[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    from pu_kd_pipeline.reporting.findings import doubts_of, findings_of
    from pu_kd_pipeline.reporting.summary import model_rows, selection_rows

    console = _console()
    header, *rows = model_rows(metrics)
    models = Table(header[0], box=box.SIMPLE_HEAD)
    for name in header[1:]:
        models.add_column(name, justify="right")
    for row in rows:
        models.add_row(*row)
    console.print(models)
    selection = Table("selection", "", box=box.SIMPLE_HEAD)
    for row in selection_rows(metrics):
        selection.add_row(*row)
    if selection.row_count:
        console.print(selection)
    for sentence in findings_of(metrics):
        _print_sentence(console, sentence)
    for sentence in doubts_of(metrics):
        _print_sentence(console, f"Doubtful: {sentence}")


class RunSettings(NamedTuple):
    """What a run was started with, and the next one should be, too."""

    environment: str | None
    parameters: dict[str, Any]


def _settings(run_params: Mapping[str, Any]) -> RunSettings:
    given = dict(run_params.get("runtime_params") or {})
    for block in (PILOT, STUDENT_SEARCH):
        given.pop(block, None)
    return RunSettings(run_params.get("env"), given)


def _print_pilot(pilot: Mapping[str, Any], page: str | None, settings: RunSettings) -> None:
    from pu_kd_pipeline.reporting.pilot_page import pilot_limits, pilot_sentences

    _print_finding(pilot_sentences(pilot), pilot_limits(pilot), pilot["parameters"], settings)
    if page:
        print(f"Pilot: {page}")


def _print_student_search(
    found: Mapping[str, Any], page: str | None, settings: RunSettings
) -> None:
    from pu_kd_pipeline.reporting.student_search_page import search_limits, search_sentences

    _print_finding(search_sentences(found), search_limits(found), found["parameters"], settings)
    if page:
        print(f"Students: {page}")


def _print_finding(
    sentences: Sequence[str],
    limits: Sequence[str],
    parameters: Mapping[str, Any],
    settings: RunSettings,
) -> None:
    """Print what short trainings found, and how to go on."""
    from pu_kd_pipeline.pilot.study import command_with, parameters_as_yaml

    console = _console()
    for sentence in sentences:
        _print_sentence(console, sentence)
    for sentence in limits:
        _print_sentence(console, f"Limit: {sentence}")
    if parameters:
        print(f"Recommended parameters:\n{visible(parameters_as_yaml(parameters))}")
    # What this run was given holds for the next one, too.
    given = with_overrides(settings.parameters, parameters)
    print(f"Next: {visible(command_with(given, settings.environment))}")


def _print_audit(catalog: DataCatalog) -> None:
    from pu_kd_pipeline.reporting.audit_result import audit_sentences

    audit = catalog.load(AUDIT)
    for sentence in audit_sentences(audit, catalog.load("audited_selection")):
        _print_sentence(_console(), sentence)
    if not audit["n_answered"]:
        print(f"Page to answer:     {dataset_location(catalog, 'audit_page')}")
        print(f"Place of its file:  {dataset_location(catalog, 'pool_audit_answers')}")
    else:
        print(f"Result: {dataset_location(catalog, 'audit_result_page')}")


def _print_export(catalog: DataCatalog) -> None:
    from pu_kd_pipeline.reporting.export_page import export_sentences

    report = catalog.load(EXPORT_REPORT)
    for sentence in export_sentences(report):
        _print_sentence(_console(), sentence)
    for sentence in report["warnings"]:
        _print_sentence(_console(), f"Note: {sentence}")
    print(f"Files: {dataset_location(catalog, 'exported_student')}")
    print(f"Page:  {dataset_location(catalog, 'export_page')}")


def _print_sentence(console: Console, sentence: str) -> None:
    """Print a sentence as it is: class names in it may look like markup."""
    console.print(visible(sentence), markup=False, highlight=False)
    if console.width != _WIDTH_OF_FILES:  # a sentence of several lines
        console.print()
