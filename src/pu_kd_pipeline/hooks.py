"""What happens around a run: its input is checked, signals end it tidily, MLflow hears of it, its result is printed.

Every class is one concern, called by Kedro in the order of `settings.HOOKS`, last first. Nothing heavy is imported
here: torch and mlflow wait until something needs them.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra import checkpoints, progress
from pu_kd_pipeline.runner import CHECKPOINTS, EXPLAINING

if TYPE_CHECKING:
    from types import FrameType

    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from pu_kd_pipeline.infra.tracking import Tracker, TrackingConfig

logger = logging.getLogger(__name__)

REPORTING_FOLDER = "08_reporting"
METRICS, STUDENT, REPORT = "metrics", "student_model", "report"
COMPARISON = "comparison_table"
# Stages that write what those of `full` write, too.
OTHER_SYSTEMS = frozenset({"unlabeled_distillation", "critic_distillation"})
TRACKED_DATASETS = frozenset({"labeled_images", "pool_images", "test_images", "manifest", "preferential_manifest"})
TRACKED_FILES = frozenset({"class_prior"})  # beside everything in the reporting folder
CONTACT_SHEET = "contact_sheet"
ENDING_SIGNALS = ("SIGTERM", "SIGHUP")  # the second one is unknown to Windows
IN_MEMORY = re.compile(r"params:|parameters$")


class InputHooks:
    """Refuses parameters that cannot be used and stages whose input is not there, before anything runs."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check every block that the requested pipelines use."""
        from kedro.framework.project import pipelines
        from kedro.validation.type_extractor import TypeExtractor
        from kedro.validation.utils import _unwrap_optional, is_pydantic_class

        from pu_kd_pipeline.infra.parameter_errors import check_parameters

        parameters = context.config_loader["parameters"]
        types = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
        models = {name: _unwrap_optional(annotation) for name, annotation in types.items()}
        texts = _configuration_texts(context)
        check_parameters(
            parameters,
            {name: model for name, model in models.items() if is_pydantic_class(model)},
            files=_files_of_blocks(texts, context.project_path),
            given=context.config_loader.runtime_params or {},
            other_names=re.findall(r"runtime_params:\s*(\w+)", "\n".join(texts.values())),
        )

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Name every saved input that is not there, and the stage that writes it."""
        missing = [
            name for name in sorted(pipeline.inputs()) if not IN_MEMORY.match(name) and _is_missing(catalog, name)
        ]
        if missing:
            writers = _stages_that_write(missing)
            faults = [
                f"  - `{name}` ({_path(catalog, name)}): "
                + (f"written by `kedro run --pipeline={writers[name]}`" if name in writers else "no stage writes it")
                for name in missing
            ]
            raise InputError(
                "Saved input of this run is missing.\n" + "\n".join(faults) + "\n"
                "Run what writes it first, or everything with `kedro run --pipeline=full`."
            )


class PreflightHooks:
    """Tries what parameters name (files, networks, taps, devices) before the first node runs."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Check the blocks that the run reads."""
        from pu_kd_pipeline.infra.preflight import check

        names = sorted(name for name in pipeline.inputs() if name.startswith("params:"))
        check({name.removeprefix("params:"): catalog.load(name) for name in names})


class SignalHooks:
    """Turns SIGTERM and SIGHUP into an exit during a run, so that files are closed and the run's status is told."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Take over the signals that would end the process at once; leave those that somebody handles or ignores."""
        if threading.current_thread() is threading.main_thread():
            for signum in (getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)):
                if signal.getsignal(signum) is signal.SIG_DFL:
                    self._previous[signum] = signal.signal(signum, self._exit)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Give the signals back."""
        self._restore()

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Give the signals back."""
        self._restore()

    def _exit(self, signum: int, frame: FrameType | None) -> None:
        self._restore()  # a second signal ends the process at once
        raise SystemExit(128 + signum)

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


class CheckpointHooks:
    """Has the trainings of a node keep checkpoints in a folder of its own, until what it gives is saved."""

    def __init__(self) -> None:
        self._unsaved: dict[str, tuple[Path, set[str]]] = {}  # node -> its folder, and its outputs that are to come

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog) -> None:
        """Tell trainings where to keep them; nowhere without an entry of the catalog that says so."""
        if CHECKPOINTS in catalog:
            dataset: Any = catalog.get(CHECKPOINTS)
            folder = dataset.filepath / node.name
            self._unsaved[node.name] = (folder, set(node.outputs))
            checkpoints.keep_in(folder, dataset.every_s)

    @hook_impl
    def after_node_run(self) -> None:
        """Have later trainings of this process keep none: what follows the node is the saving of its outputs."""
        checkpoints.keep_nowhere()

    @hook_impl
    def on_node_error(self) -> None:
        """Do the same, and leave the checkpoints: the node goes on from there."""
        checkpoints.keep_nowhere()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Remove a node's checkpoints once the last of its outputs is saved; Kedro saves after `after_node_run`."""
        if node.name in self._unsaved:
            folder, outputs = self._unsaved[node.name]
            outputs.discard(dataset_name)
            if not outputs:
                del self._unsaved[node.name]
                checkpoints.remove(folder)


class TrackingHooks:
    """Tells MLflow what is run, with which parameters, how it goes, what comes out, and how it ended."""

    def __init__(self) -> None:
        self._context: KedroContext | None = None
        self._catalog: DataCatalog | None = None
        self._tracker: Tracker | None = None
        self._decisions: dict[str, str | None] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the context: the configuration is read when a run begins."""
        self._context = context

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Prepare the run once every check has passed; it is opened by the first thing that is logged."""
        from pu_kd_pipeline.infra.tracking import Tracker

        assert self._context is not None
        if self._tracker is not None:  # a run of this process that was interrupted, as in a notebook
            self._end("KILLED")
        config = tracking_config(self._context)
        self._decisions = {}
        if config.enabled and run_params["runner"] != EXPLAINING:
            names = sorted(name for name in pipeline.inputs() if name.startswith("params:"))
            self._catalog = catalog
            self._tracker = Tracker(
                config,
                project_path=self._context.project_path,
                stage=_stage(run_params),
                environment=run_params["env"] or "local",
                parameters={name.removeprefix("params:"): catalog.load(name) for name in names},
            )
            progress.add_listener(self._tracker.log_record)
            progress.add_result_listener(self._tracker.log_child)
            progress.add_decision_listener(self._decisions.__setitem__)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Log the data sets that a stage reads."""
        if self._tracker and dataset_name in TRACKED_DATASETS:
            self._tracker.log_dataset(dataset_name, data)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log metrics, the student, and every file for human eyes."""
        if self._tracker is None or self._catalog is None:
            return
        if dataset_name == METRICS:
            self._tracker.log_metrics(data)
        if dataset_name == STUDENT:
            self._tracker.log_model(dataset_name, data.network, data.image_shape)
        path = _path(self._catalog, dataset_name)
        if path and path.exists() and (REPORTING_FOLDER in path.parts or dataset_name in TRACKED_FILES):
            self._tracker.log_file(path, path.parent.name)
            if dataset_name.startswith(CONTACT_SHEET):
                self._tracker.log_image(path)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Send what is pending."""
        if self._tracker:
            self._tracker.flush()

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Close the run."""
        if self._tracker and not self._tracker.is_lost:
            logger.info("MLflow run %s at %s", self._tracker.run_id, self._tracker.uri)
        self._end("FINISHED", self._what_ran())

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the run and keep the first line of what went wrong."""
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        self._end("FAILED", f"**Failed:** {reason}")

    def _end(self, status: Any, sentence: str = "") -> None:
        tracker, self._tracker = self._tracker, None
        if tracker:
            progress.remove_listener(tracker.log_record)
            progress.remove_result_listener(tracker.log_child)
            progress.remove_decision_listener(self._decisions.__setitem__)
            tracker.end(status, sentence)

    def _what_ran(self) -> str:
        """Return which nodes ran and why, for the run's page, where some were skipped."""
        ran = {node: why for node, why in self._decisions.items() if why is not None}
        if len(ran) == len(self._decisions) or (self._tracker and self._tracker.shared_run_id):
            return ""
        if not ran:
            return f"**Nothing to do:** all {len(self._decisions)} nodes were up to date."
        reasons = "".join(f"\n- `{node}`: {why}" for node, why in ran.items())
        return f"**{len(ran)} of {len(self._decisions)} nodes ran**, the others were up to date.\n{reasons}"


class SummaryHooks:
    """Prints what a run was worth, and where to look further."""

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print the metrics table if this run made it, and the places of the report and of MLflow."""
        if run_params["runner"] == EXPLAINING:
            return
        outputs = pipeline.all_outputs()
        if METRICS in outputs:
            _print_metrics(catalog.load(METRICS))
        if COMPARISON in outputs:
            print(catalog.load(COMPARISON))
        if REPORT in outputs and (path := _path(catalog, REPORT)):
            print(f"Report: {path}")
        if outputs & {METRICS, REPORT} and (path := _path(catalog, METRICS)):
            folder = path.parents[1]
            where = "" if folder == Path.cwd() / "data" else f" DATA={folder}"
            mlflow = os.environ.get("MLFLOW_TRACKING_URI") or f"make mlflow{where}"
            print(f"MLflow: {mlflow}    Pipeline: make viz")


def _print_metrics(metrics: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pu_kd_pipeline.infra.summary import model_rows, selection_rows

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


def _stage(run_params: Mapping[str, Any]) -> str:
    """Return a name for what is run: the narrowest of what was asked for."""
    asked = (run_params.get(key) for key in ("node_names", "namespaces", "tags", "pipeline_names"))
    return " ".join(sorted(next((names for names in asked if names), ["full"])))


def tracking_config(context: KedroContext) -> TrackingConfig:
    """Return what conf/base/mlflow.yml and the environment say.

    Raises:
        InputError: something in it cannot be used.
    """
    from pydantic import ValidationError

    from pu_kd_pipeline.infra.parameter_errors import sentences
    from pu_kd_pipeline.infra.tracking import TrackingConfig

    try:
        return TrackingConfig.model_validate(context.config_loader["mlflow"])
    except ValidationError as error:
        faults = sentences(error, TrackingConfig, name="", where="conf/base/mlflow.yml")
        raise InputError("Tracking is not set up.\n" + "\n".join(f"  - {fault}" for fault in faults)) from None


def _path(catalog: DataCatalog, name: str) -> Path | None:
    """Return where a catalog entry is kept; None for what lives in memory."""
    dataset = catalog.get(name) if name in catalog else None
    path = getattr(dataset, "filepath", None) or getattr(dataset, "_filepath", None)
    return None if path is None else Path(path)


def _is_missing(catalog: DataCatalog, name: str) -> bool:
    return name in catalog and not catalog.exists(name)


def _stages_that_write(names: list[str]) -> dict[str, str]:
    """Return data set -> the stage that writes it, looking in every registered pipeline."""
    from kedro.framework.project import pipelines

    pipelines.set_requested(None)  # the run that asked for one pipeline ends here
    stages = {name: pipelines[name] for name in sorted(pipelines, key=OTHER_SYSTEMS.__contains__, reverse=True)}
    for joined in ("full", "full_unlabeled", "__default__"):
        stages.pop(joined, None)
    return {name: stage for stage, pipeline in stages.items() for name in names if name in pipeline.all_outputs()}


def _configuration_texts(context: KedroContext) -> dict[Path, str]:
    """Return the files of the base and the run's environment, in the order in which later ones win."""
    loader: Any = context.config_loader
    folders = [Path(loader.conf_source) / env for env in (loader.base_env, loader.env or loader.default_run_env)]
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*.yml"))]
    return {path: path.read_text(encoding="utf-8") for path in files}


def _files_of_blocks(texts: Mapping[Path, str], project_path: Path) -> dict[str, Path]:
    """Return block -> the parameter file that has the last word on it."""
    return {
        block: path.relative_to(project_path) if path.is_relative_to(project_path) else path
        for path, text in texts.items()
        if path.name.startswith("parameters")
        for block in re.findall(r"^(\w+):", text, flags=re.MULTILINE)
    }
