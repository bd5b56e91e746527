"""One MLflow run, written in batches; an unreachable MLflow costs the log, not the training."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

from pu_kd_pipeline import __version__
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.storage.manifest import table_digest
from pu_kd_pipeline.tracking.config import ENVIRONMENT, TrackingConfig, shared_run_id
from pu_kd_pipeline.tracking.keys import is_finite_number, mlflow_key, mlflow_parameters
from pu_kd_pipeline.tracking.outbox import Outbox, quiet_mlflow
from pu_kd_pipeline.tracking.run_metadata import git_commit, markdown_note, user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import nn

Status = Literal["FINISHED", "FAILED", "KILLED"]
P = ParamSpec("P")

SECONDS_BETWEEN_FLUSHES = 2.0
MAX_TIME_SHARE_OF_FLUSHES = 1 / 20
# The most that one request to an MLflow server may hold.
MAX_METRICS_PER_REQUEST = 1000
MAX_PARAMETERS_PER_REQUEST = 100
MAX_DIGEST_LENGTH = 36
STAGE_TAG = "stage."
# A run that several stages share has the first of these that any of its stages has.
STATUSES_BY_PRIORITY = ("RUNNING", "FAILED", "KILLED", "FINISHED")
SQLITE_PREFIX = "sqlite:///"
SERVER_PREFIXES = ("http:", "https:", "databricks")


def _never_fatal(
    method: Callable[Concatenate[Tracker, P], None],
) -> Callable[Concatenate[Tracker, P], None]:
    """Send the calls of a method through the outbox, where they wait while MLflow fails."""

    @functools.wraps(method)
    def guarded(self: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> None:
        # A forked worker must not use its parent's connection.
        is_own_process = os.getpid() == self.process_id
        if self.is_closed or not is_own_process:
            return
        self.outbox.send(functools.partial(method, self, *args, **kwargs))

    return guarded


class Tracker:
    """The MLflow run of this process: opened by the first log call, closed by `end`.

    With `shared_run_id`, stages in separate processes share that run: each stores its status in a
    tag, and the run's own status follows from all of them.

    Args:
        config: where to log.
        project_path: folder that relative paths start from.
        stage: what this process runs, such as "full" or "pu_training".
        environment: Kedro's configuration environment.
        parameters: everything the run depends on; logged flat, with dotted keys.
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        project_path: Path,
        stage: str,
        environment: str,
        parameters: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.project_path = project_path
        self.environment = environment
        self.stage = mlflow_key(stage)
        self.parameters = dict(mlflow_parameters(parameters))
        self.folder = (project_path / config.folder).resolve()
        database = self.folder / "mlflow.db"
        default_uri = f"{SQLITE_PREFIX}{database}"
        # An empty variable counts as not set.
        given_uri = os.environ.get("MLFLOW_TRACKING_URI") or config.tracking_uri
        self.uri = given_uri or default_uri
        self.shared_run_id = shared_run_id()
        self.outbox = Outbox(self.uri)
        self.process_id = os.getpid()
        self.is_closed = False
        self.started_at = time.time()
        self.flushed_at = self.started_at
        self.seconds_between_flushes = SECONDS_BETWEEN_FLUSHES
        self.open_run_id: str | None = None
        self.metrics: Mapping[str, Any] = {}
        self.pending: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self.known_datasets: set[str] = set()
        self.system_metrics: Any = None
        # A process that ends without calling `end` was interrupted.
        atexit.register(self.end, "KILLED")

    @property
    def is_lost(self) -> bool:
        """Whether MLflow failed and has not answered since."""
        return self.outbox.is_lost

    # --- the run ----------------------------------------------------------------------------------

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The connection; it imports MLflow, so it is made by the first log call."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.uri.startswith(SQLITE_PREFIX):
            database = Path(self.uri.removeprefix(SQLITE_PREFIX))
            database.parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        for package in ("mlflow", "alembic"):
            logging.getLogger(package).setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=self.uri)

    @property
    def run_id(self) -> str:
        """The identifier of the run; opens the run if it is not open yet."""
        if self.open_run_id is None:
            if self.shared_run_id:
                shared_run = self.client.get_run(self.shared_run_id)
                self.open_run_id = shared_run.info.run_id
                self.client.update_run(self.open_run_id, status="RUNNING")
            else:
                self.open_run_id = self.create_run()
            self._set_stage_status("RUNNING")
            self._log_parameters()
            self._start_system_metrics()
        return self.open_run_id

    def create_run(self) -> str:
        """Create a run in the store and return its identifier; most callers want `run_id`."""
        experiment_id = self._experiment_id()
        tags = self._tags()
        start_time_ms = int(self.started_at * 1000)
        name = f"{self.stage} ({self.environment})"
        run = self.client.create_run(experiment_id, start_time_ms, tags, name)
        return run.info.run_id

    def _experiment_id(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.config.experiment
        known = self.client.get_experiment_by_name(name)
        if known:
            return known.experiment_id
        # A server decides itself where artifacts are stored.
        artifact_location = None
        if not self.uri.startswith(SERVER_PREFIXES):
            artifacts = self.folder / "artifacts"
            artifact_location = artifacts.as_uri()
        return self.client.create_experiment(name, artifact_location)

    def _tags(self) -> dict[str, str]:
        tags = {
            "pipeline": self.stage,
            "env": self.environment,
            "version": __version__,
            "mlflow.source.type": "LOCAL",
            # The page shows only what follows the last slash, so the full command is in the note.
            "mlflow.source.name": "kedro run",
            "mlflow.source.git.commit": git_commit(self.project_path),
            "mlflow.user": user_name(),
            "mlflow.note.content": self._note(),
        }
        # Outside a repository there is no commit, and in a container perhaps no user.
        return {key: value for key, value in tags.items() if value}

    def _note(self, *sentences: str) -> str:
        arguments = sys.argv[1:]
        command = " ".join(["kedro", *arguments])
        first_sentence = f"`{command}`, environment `{self.environment}`"
        return markdown_note(first_sentence, *sentences, metrics=self.metrics)

    def _log_parameters(self) -> None:
        """Log new parameters; a shared run cannot change one, so a changed value becomes a tag."""
        from mlflow.entities import Param, RunTag

        run = self.client.get_run(self.run_id)
        known = run.data.params
        new = []
        changed = []
        for key, value in self.parameters.items():
            if key not in known:
                new.append(Param(key, value))
            elif known[key] != value:
                tag_key = mlflow_key(f"changed.{key}")
                changed.append(RunTag(tag_key, value))
        # The limit is one for parameters and one for tags: a request may hold both.
        n_longer = max(len(new), len(changed))
        for start in range(0, n_longer, MAX_PARAMETERS_PER_REQUEST):
            end = start + MAX_PARAMETERS_PER_REQUEST
            params = new[start:end]
            tags = changed[start:end]
            self.client.log_batch(self.run_id, params=params, tags=tags)

    def _start_system_metrics(self) -> None:
        interval_s = self.config.system_metrics_interval_s
        if not interval_s:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.system_metrics = SystemMetricsMonitor(
            self.run_id,
            interval_s,
            resume_logging=bool(self.shared_run_id),
            tracking_uri=self.uri,
        )
        self.system_metrics.start()

    def end(self, status: Status, sentence: str = "") -> None:
        """Close the run with `status` and a last sentence in its note; later calls do nothing."""
        atexit.unregister(self.end)
        self.outbox.retry_at_once()
        self._close(status, sentence)
        is_own_process = os.getpid() == self.process_id
        if self.is_lost and self.open_run_id and is_own_process:
            # One last try for the status, which matters most; the failure was reported already.
            with contextlib.suppress(Exception), quiet_mlflow():
                self._set_status(status)
        self.is_closed = True
        self.outbox.clear()

    @_never_fatal
    def _close(self, status: Status, sentence: str) -> None:
        self._flush()
        if self.system_metrics:
            self.system_metrics.finish()
        # In a shared run, a stage without results must not overwrite the note of another one.
        if sentence or self.metrics or not self.shared_run_id:
            note = self._note(sentence)
            self.client.set_tag(self.run_id, "mlflow.note.content", note)
        self._set_status(status)

    def _set_stage_status(self, status: str) -> None:
        key = STAGE_TAG + self.stage
        self.client.set_tag(self.run_id, key, status)

    def _set_status(self, status: Status) -> None:
        self._set_stage_status(status)
        run = self.client.get_run(self.run_id)
        stage_statuses = set()
        for key, value in run.data.tags.items():
            if key.startswith(STAGE_TAG):
                stage_statuses.add(value)
        overall = next(each for each in STATUSES_BY_PRIORITY if each in stage_statuses)
        # While another stage is running, it will close the run.
        if overall != "RUNNING":
            self.client.set_terminated(self.run_id, overall)

    # --- what is logged ---------------------------------------------------------------------------

    def log_record(self, name: str, step: int, record: Mapping[str, Any]) -> None:
        """Log the numbers of one epoch as `<name>/<key>`; they are sent in batches."""
        # Epoch and update are the step itself, or the order of the steps.
        numbers = {key: value for key, value in record.items() if key not in {"epoch", "update"}}
        values = flatten(numbers, "/", name)
        self._add_pending(values, step)
        # An epoch may take only a millisecond, so not every record is sent at once.
        seconds_since_flush = time.time() - self.flushed_at
        if seconds_since_flush > self.seconds_between_flushes:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log nested numbers as `teacher/accuracy`, lists as steps; the run's note shows them."""
        self.metrics = metrics
        for key, value in flatten(metrics, "/"):
            if not isinstance(value, list | tuple):
                value = [value]
            for step, number in enumerate(value):
                self._add_pending([(key, number)], step)
        self.flush()

    def _add_pending(self, values: Iterable[tuple[str, Any]], step: int) -> None:
        now_ms = int(time.time() * 1000)
        with self.outbox.lock:
            for key, value in values:
                if is_finite_number(value):
                    metric = (mlflow_key(key), float(value), now_ms, step)
                    self.pending.append(metric)

    @_never_fatal
    def flush(self) -> None:
        """Send pending metrics; opens the run if it is not open yet."""
        self._flush()

    def _flush(self) -> None:
        from mlflow.entities import Metric

        start = time.time()
        run_id = self.run_id
        while self.pending:
            first = self.pending[:MAX_METRICS_PER_REQUEST]
            metrics = [Metric(*values) for values in first]
            self.client.log_batch(run_id, metrics=metrics)
            # Deleted only after the request succeeded: what fails is sent again.
            del self.pending[: len(metrics)]
        self.flushed_at = time.time()
        flush_seconds = self.flushed_at - start
        # A slow server may cost at most this share of the time.
        pause = flush_seconds / MAX_TIME_SHARE_OF_FLUSHES
        self.seconds_between_flushes = max(SECONDS_BETWEEN_FLUSHES, pause)

    @_never_fatal
    def log_child(
        self, name: str, parameters: Mapping[str, Any], metrics: Mapping[str, Any]
    ) -> None:
        """Log one trial as a finished child run; only finite numbers are logged."""
        from mlflow.entities import Metric, Param

        parent = self.client.get_run(self.run_id)
        experiment_id = parent.info.experiment_id
        parent_tags = parent.data.tags
        user = parent_tags.get("mlflow.user", "")
        tags = {"mlflow.parentRunId": parent.info.run_id, "mlflow.user": user}
        now_ms = int(time.time() * 1000)
        child = self.client.create_run(experiment_id, now_ms, tags, name)
        child_id = child.info.run_id
        numbers = []
        for key, value in metrics.items():
            if is_finite_number(value):
                metric = Metric(mlflow_key(key), float(value), now_ms, 0)
                numbers.append(metric)
        params = [Param(key, value) for key, value in mlflow_parameters(parameters)]
        first_params = params[:MAX_PARAMETERS_PER_REQUEST]
        self.client.log_batch(child_id, metrics=numbers, params=first_params)
        self.client.set_terminated(child_id, "FINISHED")

    @_never_fatal
    def log_file(self, path: Path, folder: str) -> None:
        """Store a file, or all files of a folder, among the run's artifacts."""
        source = str(path)
        if path.is_dir():
            target = f"{folder}/{path.name}"
            self.client.log_artifacts(self.run_id, source, target)
        else:
            self.client.log_artifact(self.run_id, source, folder)

    @_never_fatal
    def log_image(self, path: Path) -> None:
        """Add an image file to the run's image grid."""
        from PIL import Image

        key = mlflow_key(path.stem)
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            self.client.log_image(self.run_id, rgb, key=key, step=0)

    @_never_fatal
    def log_dataset(self, name: str, data: Any) -> None:
        """Add an image store or a table to the run's data sets: name, digest, number of rows."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if name in self.known_datasets:
            return
        self.known_datasets.add(name)
        # Stores and sharded tables have a fingerprint, other tables do not.
        fingerprint = getattr(data, "fingerprint", None)
        digest = str(fingerprint or table_digest(data))
        digest = digest[:MAX_DIGEST_LENGTH]
        source = json.dumps({"catalog": name})
        profile = json.dumps({"num_rows": len(data)})
        dataset = Dataset(name, digest, "local", source, profile=profile)
        tag = InputTag("mlflow.data.context", name)
        dataset_input = DatasetInput(dataset, [tag])
        self.client.log_inputs(self.run_id, [dataset_input])

    @_never_fatal
    def log_model(self, name: str, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Log a classifier as an exported graph with its signature, and register it.

        Args:
            name: name of the logged model.
            network: maps (N, C, H, W) float32 to (N, K) float32, on any device; left unchanged.
            input_shape: C, H, W.
        """
        from pu_kd_pipeline.tracking.logged_model import log_exported_model

        log_exported_model(
            self.client,
            self.run_id,
            name,
            network,
            input_shape,
            registered_name=self.config.registered_model,
        )
