"""One MLflow run, written to in batches; MLflow being down costs the log, not the training."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

from pu_kd_pipeline import __version__
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.storage.manifest import table_digest
from pu_kd_pipeline.tracking.config import ENVIRONMENT, TrackingConfig
from pu_kd_pipeline.tracking.run_metadata import git_commit, markdown_note, requirement, user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import nn

logger = logging.getLogger(__name__)
Status = Literal["FINISHED", "FAILED", "KILLED"]
P = ParamSpec("P")
SECONDS_BETWEEN_FLUSHES = 2.0
SECONDS_BEFORE_RETRY = 30.0  # times the failures in a row
MAX_FAILURES, MAX_WAITING = 3, 10_000
MAX_VALUE_LENGTH, MAX_KEY_LENGTH, MAX_DIGEST_LENGTH = 500, 250, 36
STAGE_TAG = "stage."


def _never_fatal(
    method: Callable[Concatenate[Tracker, P], None],
) -> Callable[Concatenate[Tracker, P], None]:
    """Have what MLflow does not take wait until it answers again; the run goes on meanwhile."""

    @functools.wraps(method)
    def guarded(self: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if (
            self.is_closed or os.getpid() != self.process_id
        ):  # a forked worker must not touch its parent's connection
            return
        with self.lock:
            call = functools.partial(method, self, *args, **kwargs)
            if not (
                self.waiting and call.func is self.waiting[-1].func and not args
            ):  # two flushes are one
                self.waiting.append(call)
            self.catch_up()

    return guarded


class Tracker:
    """The MLflow run of this process: opened by the first thing that is logged, closed by `end`.

    With `shared_run_id`, stages in separate processes share that run: each keeps its status in a tag, and the run's own
    status follows from all of them.

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
        self.config, self.project_path, self.environment = config, project_path, environment
        self.stage, self.parameters = (
            _key(stage),
            {_key(key): _cut(value) for key, value in flatten(parameters)},
        )
        self.folder = (project_path / config.folder).resolve()
        store = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or config.tracking_uri or store
        self.shared_run_id = shared_run_id()
        self.lock, self.process_id, self.is_closed = threading.RLock(), os.getpid(), False
        self.waiting: deque[functools.partial[None]] = deque(maxlen=MAX_WAITING)
        self.is_lost, self.retry_at, self.n_failures = False, 0.0, 0
        self.started_at = self.flushed_at = time.time()
        self.seconds_between_flushes = SECONDS_BETWEEN_FLUSHES
        self.open_run_id: str | None = None
        self.metrics: Mapping[str, Any] = {}
        self.pending: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self.known_datasets: set[str] = set()
        self.system_metrics: Any = None
        atexit.register(
            self.end, "KILLED"
        )  # what ends neither well nor with an error was interrupted

    # --- the run ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The connection; MLflow is imported here and no sooner."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=self.uri)

    @property
    def run_id(self) -> str:
        """The identifier of the run, which is opened when there is none yet."""
        if self.open_run_id is None:
            if self.shared_run_id:
                self.open_run_id = self.client.get_run(self.shared_run_id).info.run_id
                self.client.update_run(self.open_run_id, status="RUNNING")
            else:
                self.open_run_id = self._create_run()
            self.client.set_tag(self.open_run_id, STAGE_TAG + self.stage, "RUNNING")
            self._log_parameters()
            self._start_system_metrics()
        return self.open_run_id

    def _create_run(self) -> str:
        started, name = int(self.started_at * 1000), f"{self.stage} ({self.environment})"
        return self.client.create_run(
            self._experiment_id(), started, self._tags(), name
        ).info.run_id

    def _experiment_id(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.config.experiment
        if known := self.client.get_experiment_by_name(name):
            return known.experiment_id
        has_server = self.uri.startswith(
            ("http:", "https:", "databricks")
        )  # a server knows where artifacts belong
        return self.client.create_experiment(
            name, None if has_server else (self.folder / "artifacts").as_uri()
        )

    def _tags(self) -> dict[str, str]:
        tags = {
            "pipeline": self.stage,
            "env": self.environment,
            "version": __version__,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "kedro run",  # the page shows what follows the last slash; the note has the command
            "mlflow.source.git.commit": git_commit(self.project_path),
            "mlflow.user": user_name(),
            "mlflow.note.content": self._note(),
        }
        return {key: value for key, value in tags.items() if value}

    def _note(self, *sentences: str) -> str:
        command = f"`{' '.join(['kedro', *sys.argv[1:]])}`, environment `{self.environment}`"
        return markdown_note(command, *sentences, metrics=self.metrics)

    def _log_parameters(self) -> None:
        """Log what is new; a shared run cannot change a parameter, so a changed one becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.run_id).data.params
        new = [Param(key, value) for key, value in self.parameters.items() if key not in known]
        changed = {
            key: value for key, value in self.parameters.items() if known.get(key, value) != value
        }
        tags = [RunTag(_key(f"changed.{key}"), value) for key, value in changed.items()]
        for start in range(0, max(len(new), len(tags)), 100):  # the most that one request may hold
            self.client.log_batch(
                self.run_id, params=new[start : start + 100], tags=tags[start : start + 100]
            )

    def _start_system_metrics(self) -> None:
        if interval_s := self.config.system_metrics_interval_s:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.system_metrics = SystemMetricsMonitor(
                self.run_id,
                interval_s,
                resume_logging=bool(self.shared_run_id),
                tracking_uri=self.uri,
            )
            self.system_metrics.start()

    def end(self, status: Status, sentence: str = "") -> None:
        """Close the run with `status` and a last sentence in its note; a second call does nothing."""
        atexit.unregister(self.end)
        self.retry_at = 0.0  # a last time, however long ago the server failed
        self._close(status, sentence)
        if self.is_lost and self.open_run_id and os.getpid() == self.process_id:
            with (
                contextlib.suppress(Exception),
                quiet_mlflow(),
            ):  # told already; the status is what matters most
                self._set_status(status)
        self.is_closed = True
        self.waiting.clear()

    def catch_up(self) -> None:
        """Send what waits, oldest first, unless MLflow failed a moment ago; tell once that it fails, and its return.

        What fails three times is given up, so that it does not stop what comes after it.
        """
        if time.monotonic() < self.retry_at:
            return
        try:
            with quiet_mlflow():
                while self.waiting:
                    self.waiting[0]()
                    self.waiting.popleft()
                    self.n_failures = 0
        except Exception as error:
            if not self.is_lost:
                reason = str(error).strip().split("\n")[0][:300]
                logger.warning(
                    "MLflow at %s failed, the run goes on without a log and tries again: %s",
                    self.uri,
                    reason,
                )
            self.n_failures += 1
            self.is_lost, self.retry_at = (
                True,
                time.monotonic() + SECONDS_BEFORE_RETRY * self.n_failures,
            )
            if self.n_failures == MAX_FAILURES:
                self.waiting.popleft()
                self.n_failures = 1
        else:
            if self.is_lost:
                logger.info("MLflow at %s answers again; what waited is logged", self.uri)
            self.is_lost = False

    @_never_fatal
    def _close(self, status: Status, sentence: str) -> None:
        self._flush()
        if self.system_metrics:
            self.system_metrics.finish()
        if (
            sentence or self.metrics or not self.shared_run_id
        ):  # a stage with nothing to say leaves the others' note
            self.client.set_tag(self.run_id, "mlflow.note.content", self._note(sentence))
        self._set_status(status)

    def _set_status(self, status: Status) -> None:
        self.client.set_tag(self.run_id, STAGE_TAG + self.stage, status)
        tags = self.client.get_run(self.run_id).data.tags
        stages = {value for key, value in tags.items() if key.startswith(STAGE_TAG)}
        whole = next(each for each in ("RUNNING", "FAILED", "KILLED", "FINISHED") if each in stages)
        if whole != "RUNNING":  # another stage is still at work
            self.client.set_terminated(self.run_id, whole)

    # --- what is logged -----------------------------------------------------------------------------------------------

    def log_record(self, name: str, step: int, record: Mapping[str, Any]) -> None:
        """Log the numbers of one epoch as `<name>/<key>`, in batches: an epoch may take only a millisecond."""
        numbers = {key: value for key, value in record.items() if key not in {"epoch", "update"}}
        self._remember(flatten(numbers, "/", name), step)
        if time.time() - self.flushed_at > self.seconds_between_flushes:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers of a nested mapping as `teacher/accuracy`; a list becomes steps. The note shows them too."""
        self.metrics = metrics
        for key, value in flatten(metrics, "/"):
            for step, number in enumerate(value if isinstance(value, list | tuple) else [value]):
                self._remember([(key, number)], step)
        self.flush()

    def _remember(
        self, values: Iterator[tuple[str, Any]] | list[tuple[str, Any]], step: int
    ) -> None:
        now = int(time.time() * 1000)
        with self.lock:
            for key, value in values:
                if isinstance(value, int | float) and math.isfinite(value):
                    self.pending.append((_key(key), float(value), now, step))

    @_never_fatal
    def flush(self) -> None:
        """Send what is pending, and open the run if it is not open yet."""
        self._flush()

    def _flush(self) -> None:
        from mlflow.entities import Metric

        started, run_id = time.time(), self.run_id
        while self.pending:
            metrics = [
                Metric(*values) for values in self.pending[:1000]
            ]  # the most that one request may hold
            self.client.log_batch(run_id, metrics=metrics)
            del self.pending[: len(metrics)]
        self.flushed_at = time.time()
        # a slow server may cost a twentieth of the time
        self.seconds_between_flushes = max(
            SECONDS_BETWEEN_FLUSHES, 20.0 * (self.flushed_at - started)
        )

    @_never_fatal
    def log_child(
        self, name: str, parameters: Mapping[str, Any], metrics: Mapping[str, Any]
    ) -> None:
        """Log one of many trials as a finished run below this one; numbers that are not finite are left out."""
        from mlflow.entities import Metric, Param

        parent, now = self.client.get_run(self.run_id), int(time.time() * 1000)
        tags = {
            "mlflow.parentRunId": parent.info.run_id,
            "mlflow.user": parent.data.tags.get("mlflow.user", ""),
        }
        child = self.client.create_run(parent.info.experiment_id, now, tags, name).info.run_id
        numbers = [(key, value) for key, value in metrics.items() if isinstance(value, int | float)]
        self.client.log_batch(
            child,
            metrics=[
                Metric(_key(key), float(value), now, 0)
                for key, value in numbers
                if math.isfinite(value)
            ],
            params=[Param(_key(key), _cut(value)) for key, value in flatten(parameters)][:100],
        )
        self.client.set_terminated(child, "FINISHED")

    @_never_fatal
    def log_file(self, path: Path, folder: str) -> None:
        """Store a file, or all files of a folder, among the run's artifacts."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), f"{folder}/{path.name}")
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    @_never_fatal
    def log_image(self, path: Path) -> None:
        """Add an image file to the run's image grid."""
        from PIL import Image

        with Image.open(path) as image:
            self.client.log_image(self.run_id, image.convert("RGB"), key=_key(path.stem), step=0)

    @_never_fatal
    def log_dataset(self, name: str, data: Any) -> None:
        """Add an image store or a table to the run's data sets, once: name, fingerprint and number of rows."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if name not in self.known_datasets:
            self.known_datasets.add(name)
            digest = str(getattr(data, "fingerprint", None) or table_digest(data))[
                :MAX_DIGEST_LENGTH
            ]
            source, profile = json.dumps({"catalog": name}), json.dumps({"num_rows": len(data)})
            dataset = Dataset(name, digest, "local", source, profile=profile)
            self.client.log_inputs(
                self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", name)])]
            )

    @_never_fatal
    def log_model(self, name: str, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Log a classifier as an exported graph (never a pickle) with its signature, and register it.

        Args:
            name: of the logged model.
            network: from (N, C, H, W) float32 to (N, K) float32, on any device; it is left as it is.
            input_shape: C, H, W.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        experiment_id = self.client.get_run(self.run_id).info.experiment_id
        logged = self.client.create_logged_model(experiment_id, name, source_run_id=self.run_id)
        model_id = logged.model_id
        with tempfile.TemporaryDirectory() as folder:
            try:
                _export(
                    network, input_shape, f"{folder}/model", run_id=self.run_id, model_id=model_id
                )
            except Exception as error:  # a user's network may do what torch.export cannot trace
                self.client.finalize_logged_model(model_id, "FAILED")
                logger.warning(
                    "%s cannot be exported and is not registered in MLflow: %s", name, error
                )
                return
            self.client.log_model_artifacts(model_id, f"{folder}/model")
        self.client.finalize_logged_model(model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model_id, step=0)])
        if registered := self.config.registered_model:
            with contextlib.suppress(MlflowException):  # it exists already
                self.client.create_registered_model(registered)
            source = logged.artifact_location
            self.client.create_model_version(
                registered, source, self.run_id, await_creation_for=0, model_id=model_id
            )


def shared_run_id() -> str | None:
    """Return the run that this process shares with others: MLFLOW_RUN_ID, or what the file PU_KD_RUN_ID_FILE holds."""
    if given := os.environ.get("MLFLOW_RUN_ID"):
        return given
    path = os.environ.get("PU_KD_RUN_ID_FILE")
    if not path or not Path(path).is_file():
        return None
    return Path(path).read_text(encoding="utf-8").strip() or None


def _export(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    folder: str,
    *,
    run_id: str,
    model_id: str,
) -> None:
    """Write an MLflow model folder that holds the traced graph of a copy of `network`."""
    import copy

    import numpy as np
    import torch
    from mlflow import pytorch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.zeros(
        (2, *input_shape), dtype=np.float32
    )  # a batch of one would fix the batch size for ever
    exported = copy.deepcopy(network).cpu().float().eval()
    with torch.no_grad():
        n_classes = exported(torch.from_numpy(example)).shape[1]
    shapes = (input_shape, (n_classes,))
    inputs, outputs = (Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]) for shape in shapes)
    pytorch.save_model(
        exported,
        folder,
        mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        signature=ModelSignature(inputs, outputs),
        input_example=example,
        pip_requirements=[requirement(package) for package in ("torch", "numpy", "mlflow")],
        serialization_format="pt2",
    )


def _key(text: str) -> str:
    """Return `text` with only the characters that MLflow allows in a key."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:MAX_KEY_LENGTH]


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[:MAX_VALUE_LENGTH] + " …"


@contextlib.contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Keep the HTTP client's retries out of the log: the one warning says it all."""
    chatty = logging.getLogger("urllib3.connectionpool")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatty.setLevel(level)
