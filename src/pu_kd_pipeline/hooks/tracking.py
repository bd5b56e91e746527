"""Tracking a run with MLflow.

The catalog says what is logged: `metadata: {mlflow: ...}` of an entry is `dataset`, `metrics`,
`model`, `certificate`, `cells`, `note`, `file` or `image`. Every file of the reporting folder is
logged as an artifact. A run in which nothing was done is not logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kedro.framework.hooks import hook_impl
from kedro.io.core import DatasetError

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import InputError, first_line
from pu_kd_pipeline.hooks.catalog import dataset_path, tracked_as
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER

if TYPE_CHECKING:
    import numpy as np
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from pu_kd_pipeline.models.model import Model
    from pu_kd_pipeline.tracking.client import Tracker
    from pu_kd_pipeline.tracking.config import TrackingConfig
    from pu_kd_pipeline.tracking.stage_times import StageTimes

logger = logging.getLogger(__name__)

REPORTING_FOLDER = "08_reporting"
CERTIFICATE = "certificate"  # the catalog entry
# From the narrowest to the widest way of asking Kedro for a part of a pipeline.
RUN_SELECTORS = ("node_names", "namespaces", "tags", "pipeline_names")


# Parts of what Kedro says about the runner.
SEQUENTIAL_RUNNER = "SequentialRunner"
PARALLEL_RUNNER = "ParallelRunner"


class _ReusedCell(NamedTuple):
    """A cell of a comparison that an earlier run has computed."""

    title: str
    identity: Mapping[str, Any]
    result: Mapping[str, Any]
    ended_at_s: float


class TrackingHooks:
    """Logs parameters, progress, results and the final status of a run to MLflow."""

    def __init__(self) -> None:
        self._context: KedroContext | None = None
        self._catalog: DataCatalog | None = None
        self._tracker: Tracker | None = None
        self._reasons_to_run: dict[str, str | None] = {}
        self._stage_times: StageTimes
        self._runner = ""
        self._reused_cells: list[_ReusedCell] = []

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Store the context; the configuration is read when a run starts."""
        self._context = context

    @hook_impl(trylast=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Prepare the MLflow run after every check has passed; the first log call opens it."""
        from pu_kd_pipeline.tracking.client import Tracker
        from pu_kd_pipeline.tracking.stage_times import StageTimes

        assert self._context is not None
        if self._tracker is not None:
            # An interrupted run of this process, as in a notebook, never reached its last hook.
            self._end("KILLED")
        config = tracking_config(self._context)
        self._reasons_to_run = {}
        self._reused_cells = []
        self._runner = str(run_params["runner"])
        if not config.enabled or run_params["runner"] == EXPLAINING_RUNNER:
            return
        # Only the blocks that this run reads.
        parameters = {}
        for name in sorted(pipeline.inputs()):
            if name.startswith("params:"):
                parameters[name.removeprefix("params:")] = catalog.load(name)
        # A wrong kind would otherwise stop the run after hours, when the entry is saved.
        kinds = {tracked_as(catalog, name) for name in sorted(pipeline.datasets())}
        if "model" in kinds:
            _check_input_example(config.input_example, catalog)
        self._catalog = catalog
        tracker = Tracker(
            config,
            project_path=self._context.project_path,
            stage=_stage_name(run_params),
            environment=run_params["env"] or "local",
            parameters=parameters,
        )
        self._tracker = tracker
        self._stage_times = StageTimes()
        if PARALLEL_RUNNER in self._runner:
            logger.warning(
                "MLflow gets the parameters and the status of this run alone, because its nodes "
                "run in other processes: without `--runner=%s` it gets everything",
                PARALLEL_RUNNER,
            )
        progress.paces.add(self._stage_times.add_pace)
        progress.records.add(tracker.log_record)
        progress.results.add(tracker.log_child)
        progress.decisions.add(self._reasons_to_run.__setitem__)

    # The two hooks that come first of a node, and the last two. A node may read or save nothing.

    @hook_impl(tryfirst=True)
    def before_dataset_loaded(self, node: Node) -> None:
        """Start the clock of a node, and import MLflow as soon as there is one, but not before."""
        self._start_node(node)

    @hook_impl(tryfirst=True)
    def before_node_run(self, node: Node) -> None:
        """The same, for a node that reads nothing."""
        self._start_node(node)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Log the datasets that a stage reads, and the models of earlier runs."""
        if self._tracker is None or self._catalog is None:
            return
        kind = tracked_as(self._catalog, dataset_name)
        if kind == "dataset":
            self._tracker.log_dataset(dataset_name, data)
        if kind == "model":
            self._tracker.link_model(dataset_name, data)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log metrics, the student, and every file made for people."""
        if self._tracker is None or self._catalog is None:
            return
        self._stage_times.touch()
        kind = tracked_as(self._catalog, dataset_name)
        if kind == "metrics":
            self._tracker.log_metrics(data)
        if kind == "model":
            entry = self._tracker.config.input_example
            examples = example_images(self._catalog, entry, data.image_shape)
            self._tracker.log_model(dataset_name, data, examples)
            # A student that came out as before keeps its certificate, which no node writes again.
            earlier = earlier_certificate(self._catalog, data)
            if earlier is not None:
                self._tracker.log_certificate(CERTIFICATE, earlier)
        if kind == "cells":
            self._find_reused_cells(self._tracker, dataset_name, data)
        if kind == "note":
            self._tracker.log_note(str(data))
        if kind == "certificate":
            self._tracker.log_certificate(dataset_name, data)
        path = dataset_path(self._catalog, dataset_name)
        if path is None or not path.exists():
            return
        if REPORTING_FOLDER in path.parts or kind == "file":
            self._tracker.log_file(path, path.parent.name)
        if kind == "image":
            self._tracker.log_image(path)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Send what is pending."""
        if self._tracker:
            self._stage_times.touch()
            self._tracker.flush()

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Close the run; one in which no node has run is not logged."""
        tracker = self._tracker
        if tracker and self._reasons_to_run and not self._was_nothing_done(tracker):
            self._log_what_still_holds(tracker, pipeline, catalog)
        self._end("FINISHED", self._nodes_note())
        if tracker and tracker.open_run_id and not tracker.is_lost:
            logger.info("MLflow run %s at %s", tracker.open_run_id, tracker.address)

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the run with the first line of the error."""
        if self._tracker:
            self._stage_times.touch()
        self._end("FAILED", f"**Failed:** {first_line(error)}")

    def _end(self, status: Any, note: str = "") -> None:
        tracker = self._tracker
        if tracker is None:
            return
        if self._was_nothing_done(tracker):
            self._stop_listening(tracker)
            tracker.discard()
            return
        self._log_times(tracker)
        # Last, because nothing of this run is lost with them.
        for cell in self._reused_cells:
            tracker.log_child(cell.title, cell.identity, cell.result, ended_at_s=cell.ended_at_s)
        self._reused_cells = []
        self._stop_listening(tracker)
        tracker.end(status, note)

    def _find_reused_cells(self, tracker: Tracker, name: str, makers: Any) -> None:
        """Find the cells that earlier runs have computed, with their own times."""
        assert self._catalog is not None
        dataset: Any = self._catalog.get(name)
        try:
            table = dataset.load()
            for shard, placed in makers.arguments.items():
                if tracker.has_child(placed.title):
                    continue
                [result] = table.shard(shard).to_pylist()
                # A shard is written when its cell has been computed.
                ended_at_s = dataset.written_at_s(shard)
                cell = _ReusedCell(placed.title, placed.cell.identity(), result, ended_at_s)
                self._reused_cells.append(cell)
        # Of any kind: an entry of a user may hold anything, and the results are saved.
        except Exception as error:
            logger.warning(
                "MLflow does not get all cells of %s that earlier runs have computed: %s",
                name,
                first_line(error),
            )

    def _start_node(self, node: Node) -> None:
        if self._tracker:
            self._tracker.start()
            # The nodes of other runners come at the same time, and share their time and memory.
            if SEQUENTIAL_RUNNER in self._runner:
                self._stage_times.start(node.name, node.namespace)

    def _log_times(self, tracker: Tracker) -> None:
        """Log what the nodes took, also those of a run that failed."""
        if not self._stage_times.nodes:
            return
        tracker.log_numbers(self._stage_times.metrics(), source="stages")
        skipped = [node for node, reason in self._reasons_to_run.items() if reason is None]
        file = "timeline.html"
        # A file of each stage: a run that several share has several.
        if tracker.shared_run_id:
            file = f"timelines/{tracker.stage}.html"
        tracker.log_text(self._stage_times.page(skipped), file)

    def _stop_listening(self, tracker: Tracker) -> None:
        self._tracker = None
        self._stage_times.finish()
        progress.paces.remove(self._stage_times.add_pace)
        progress.records.remove(tracker.log_record)
        progress.results.remove(tracker.log_child)
        progress.decisions.remove(self._reasons_to_run.__setitem__)

    def _was_nothing_done(self, tracker: Tracker) -> bool:
        """Return whether no node has run: all are up to date, or the run failed before."""
        # Of nodes in other processes, nothing is known here.
        is_known = PARALLEL_RUNNER not in self._runner
        # In a shared run, a stage has a status, whether it did something or not.
        return is_known and not tracker.is_started and not tracker.shared_run_id

    def _log_what_still_holds(
        self, tracker: Tracker, pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Log the metrics and models of nodes that were skipped because they are up to date."""
        for node in pipeline.nodes:
            if self._reasons_to_run.get(node.name, "") is not None:
                continue
            for name in node.outputs:
                kind = tracked_as(catalog, name)
                if kind not in ("metrics", "model"):
                    continue
                try:
                    data = catalog.load(name)
                # Of any kind: the run has succeeded, and a file may be gone a moment later.
                except Exception as error:
                    logger.warning(
                        "MLflow does not get %s, which was up to date: %s", name, first_line(error)
                    )
                    continue
                if kind == "metrics":
                    tracker.log_metrics(data)
                else:
                    tracker.link_model(name, data)

    def _nodes_note(self) -> str:
        """Return which nodes ran and why, for the run's page; empty if all of them ran."""
        reasons = []
        for node, reason in self._reasons_to_run.items():
            if reason is not None:
                reasons.append(f"\n- `{node}`: {reason}")
        n_nodes = len(self._reasons_to_run)
        # A run that several stages share is described by all of them together.
        is_shared = self._tracker is not None and bool(self._tracker.shared_run_id)
        if len(reasons) == n_nodes or is_shared:
            return ""
        header = f"**{len(reasons)} of {n_nodes} nodes ran**, the others were up to date."
        return f"{header}\n{''.join(reasons)}"


def _check_input_example(entry: str | None, catalog: DataCatalog) -> None:
    """Check that the catalog has the entry of `input_example`.

    Raises:
        InputError: it does not.
    """
    if entry is not None and entry not in catalog:
        raise InputError(
            f"input_example in conf/base/mlflow.yml: the catalog has no entry {entry!r}: name an "
            "entry of images, or null for a generated pattern"
        )


def example_images(
    catalog: DataCatalog, entry: str | None, image_shape: tuple[int, int, int]
) -> np.ndarray | None:
    """Return two images for the input example of a model, or None if there are none.

    Args:
        catalog: the catalog of the run.
        entry: name of a catalog entry of images; None: no images are wanted.
        image_shape: (C, H, W) that the model takes.

    Returns:
        (2, C, H, W) uint8.
    """
    import numpy as np

    if entry is None:
        return None
    try:
        store = catalog.load(entry)
        if store.image_shape == image_shape and len(store) > 1:
            images: np.ndarray = store.read(np.arange(2))
            return images
    # Of any kind: a stage alone may have no such file, and an entry of a user may hold anything.
    except Exception as error:
        logger.warning(
            "the input example of the model in MLflow is a pattern: `input_example` in "
            "conf/base/mlflow.yml names %s, and no image can be read from it (%s)",
            entry,
            first_line(error),
        )
    return None


def earlier_certificate(catalog: DataCatalog, model: Model) -> dict[str, Any] | None:
    """Return the certificate in the catalog if it is about this very model, else None.

    One of another model, such as of the student before, is never returned.
    """
    if tracked_as(catalog, CERTIFICATE) != "certificate":
        return None
    dataset: Any = catalog.get(CERTIFICATE)
    # One that is missing or damaged is written by its node.
    try:
        certificate: dict[str, Any] = dataset.load()
        student = certificate["provenance"]["student"]
    except (DatasetError, LookupError, TypeError, AttributeError):
        return None
    return certificate if student == model.fingerprint() else None


def _stage_name(run_params: Mapping[str, Any]) -> str:
    """Return a name for what is run: the narrowest selection that was asked for."""
    for selector in RUN_SELECTORS:
        names = run_params.get(selector)
        if names:
            return " ".join(sorted(names))
    return "full"


def tracking_config(context: KedroContext) -> TrackingConfig:
    """Return the merged configuration of conf/base/mlflow.yml and the environment.

    Raises:
        InputError: something in it cannot be used.
    """
    from pydantic import ValidationError

    from pu_kd_pipeline.params.validation import fault_messages
    from pu_kd_pipeline.tracking.config import TrackingConfig

    try:
        return TrackingConfig.model_validate(context.config_loader["mlflow"])
    except ValidationError as error:
        faults = fault_messages(error, TrackingConfig, name="", where="conf/base/mlflow.yml")
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise InputError(f"Tracking is not set up.\n{lines}") from None
