"""Tracking a run with MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.catalog import METRICS, STUDENT, dataset_path
from pu_kd_pipeline.incremental.runner import EXPLAINING

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from pu_kd_pipeline.tracking.client import Tracker
    from pu_kd_pipeline.tracking.config import TrackingConfig

logger = logging.getLogger(__name__)
REPORTING_FOLDER = "08_reporting"
TRACKED_DATASETS = frozenset(
    {"labeled_images", "pool_images", "test_images", "manifest", "preferential_manifest"}
)
TRACKED_FILES = frozenset({"class_prior"})  # beside everything in the reporting folder
CONTACT_SHEET = "contact_sheet"


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
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Prepare the run once every check has passed; it is opened by the first thing that is logged."""
        from pu_kd_pipeline.tracking.client import Tracker

        assert self._context is not None
        if (
            self._tracker is not None
        ):  # a run of this process that was interrupted, as in a notebook
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
        path = dataset_path(self._catalog, dataset_name)
        if (
            path
            and path.exists()
            and (REPORTING_FOLDER in path.parts or dataset_name in TRACKED_FILES)
        ):
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

    from pu_kd_pipeline.params.validation import sentences
    from pu_kd_pipeline.tracking.config import TrackingConfig

    try:
        return TrackingConfig.model_validate(context.config_loader["mlflow"])
    except ValidationError as error:
        faults = sentences(error, TrackingConfig, name="", where="conf/base/mlflow.yml")
        raise InputError(
            "Tracking is not set up.\n" + "\n".join(f"  - {fault}" for fault in faults)
        ) from None
