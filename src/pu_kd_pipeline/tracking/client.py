"""The MLflow run of a process: what is logged, handed to the background.

Nothing here waits for MLflow, except `end`, and that for a limited time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pu_kd_pipeline.masking import visible, without_credentials
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.storage.manifest import table_digest
from pu_kd_pipeline.tracking.certificates import certificate_record
from pu_kd_pipeline.tracking.config import (
    TrackingConfig,
    data_name,
    own_folder,
    shared_run_id,
    store_folder,
)
from pu_kd_pipeline.tracking.experiments import asked_experiment
from pu_kd_pipeline.tracking.keys import (
    is_finite_number,
    metric_values,
    mlflow_key,
    mlflow_parameters,
)
from pu_kd_pipeline.tracking.model_description import (
    ModelRecord,
    accuracies_of_models,
    file_model_record,
    model_record,
)
from pu_kd_pipeline.tracking.outbox import Call, Outbox, UnreachableError
from pu_kd_pipeline.tracking.pending_metrics import PendingMetrics
from pu_kd_pipeline.tracking.run_log import MAX_METRICS_PER_REQUEST, RunSettings
from pu_kd_pipeline.tracking.run_metadata import markdown_note
from pu_kd_pipeline.tracking.stores import check_store, earlier_store, store_uri
from pu_kd_pipeline.tracking.trials import Trial, computation_digest, trial_metrics
from pu_kd_pipeline.tracking.worker import Worker, WorkerError

if TYPE_CHECKING:
    import numpy as np

    from pu_kd_pipeline.models.model import Model

Status = Literal["FINISHED", "FAILED", "KILLED"]

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_FLUSHES = 2.0
# At most this share of the time is spent on sending metrics, and on waiting at the end.
MAX_TIME_SHARE = 1 / 20
# Until MLflow is imported, also from a slow disk. No server is asked meanwhile.
SECONDS_TO_LOAD = 120.0
SECONDS_TO_LOAD_AT_END = 30.0
MAX_DIGEST_LENGTH = 36
MAX_NOTE_LENGTH = 7_800  # the most that a tag may hold is 8,000
MAX_COMMAND_LENGTH = 2_000
# Slower uploads are given up.
MIN_BYTES_PER_SECOND = 200_000
# A container that is stopped is killed ten seconds later.
SECONDS_WHEN_KILLED = 8.0
SECONDS_FOR_STATUS = 10.0
SECONDS_FOR_STATUS_OF_NEW_PROCESS = 5.0
FLUSH = "log_metrics"
RESULTS = "results"


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
        call_limit_s: the most that one call to MLflow may take; uploads get more, by their size.
        worker: makes the calls; None: a process of its own.

    Raises:
        InputError: the address of the store cannot be used.
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        project_path: Path,
        stage: str,
        environment: str,
        parameters: Mapping[str, Any],
        call_limit_s: float = 60.0,
        worker: Worker | None = None,
    ) -> None:
        self.config = config
        self.environment = environment
        self.stage = mlflow_key(stage)
        folder = store_folder(config, project_path)
        self.uri = store_uri(config, folder)
        check_store(self.uri)
        self.address = without_credentials(self.uri)
        self._earlier_store = earlier_store(self.uri, folder, own_folder(config, project_path))
        self.shared_run_id = shared_run_id()
        self.metrics: Mapping[str, Any] = {}
        self._notes: list[str] = []
        self.settings = RunSettings(
            uri=self.uri,
            folder=folder,
            project_path=project_path,
            asked_experiment=asked_experiment(config.experiment),
            shared_run_id=self.shared_run_id,
            stage=self.stage,
            environment=environment,
            data=data_name(config, project_path),
            note=self._note(),
            parameters=dict(mlflow_parameters(parameters)),
            started_at_ms=int(time.time() * 1000),
            key=uuid.uuid4().hex,
            system_metrics_interval_s=config.system_metrics_interval_s,
        )
        self.outbox = Outbox(self._perform, self.address)
        self.worker = worker or Worker()
        self.open_run_id: str | None = None
        self.is_closed = False
        self.is_started = False
        self._call_limit_s = call_limit_s
        self._process_id = os.getpid()
        self._start = time.monotonic()
        self._is_ending = False
        self._is_loaded = threading.Event()
        self._is_left_behind_closed = False
        self._n_openings = 0
        self._opened_start: int | None = None
        # The first record is sent at once, so that the run is soon visible.
        self._flushed_at = -math.inf
        self._seconds_between_flushes = SECONDS_BETWEEN_FLUSHES
        self._pending = PendingMetrics()
        self._known_datasets: set[str] = set()
        self._known_children: set[str] = set()
        self._known_models: set[str] = set()
        self._unexported_models: set[str] = set()
        self._exports: tempfile.TemporaryDirectory[str] | None = None
        # A process that ends without calling `end` was interrupted.
        atexit.register(self.end, "KILLED")

    @property
    def is_lost(self) -> bool:
        """Whether MLflow failed and has not answered since."""
        return self.outbox.is_lost

    def start(self) -> None:
        """Let the background import MLflow, while the run does something else.

        Nothing is started before: a run whose nodes are all up to date is not logged.
        """
        if self.is_started:
            return
        self.is_started = True
        if self._earlier_store is not None:
            logger.warning(
                "the runs of this project are logged to %s, in one list. Earlier runs of this data "
                "folder are still in %s: `make mlflow STORE=%s` shows them. Move that folder away "
                "to end this message, or set `shared_folder: null` in conf/%s/mlflow.yml to log "
                "there",
                self.settings.folder,
                self._earlier_store,
                self._earlier_store,
                self.environment,
            )
        self._send(Call("load"))

    def discard(self) -> None:
        """End without a run in MLflow: nothing was done."""
        if self._is_usable():
            self._finish()

    # --- what is logged ---------------------------------------------------------------------------

    def log_record(self, name: str, step: int, record: Mapping[str, Any]) -> None:
        """Log the numbers of one epoch as `<name>/<key>`; they are sent in batches."""
        # Epoch and update are the step itself, or the order of the steps.
        numbers = {key: value for key, value in record.items() if key not in {"epoch", "update"}}
        if self._is_usable():
            for key, value in flatten(numbers, "/", name):
                self._pending.add(mlflow_key(key), value, step, source=name)
        # An epoch may take only a millisecond, so not every record is sent at once.
        if time.monotonic() - self._flushed_at > self._seconds_between_flushes:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log nested numbers as `teacher/accuracy`; the run's note shows them."""
        self.metrics = metrics
        if self._is_usable():
            for key, step, value in metric_values(metrics):
                self._pending.add(key, value, step, source=RESULTS)
        self.flush()
        accuracies = accuracies_of_models(metrics)
        if accuracies:
            self._send(Call("tag_accuracies", (accuracies,)))

    def flush(self) -> None:
        """Send pending metrics; opens the run if it is not open yet."""
        self._flushed_at = time.monotonic()
        self._send(Call(FLUSH))

    def log_child(
        self,
        name: str,
        parameters: Mapping[str, Any],
        metrics: Mapping[str, Any],
        *,
        ended_at_s: float | None = None,
    ) -> None:
        """Log one trial as a finished child run; only finite numbers are logged.

        Args:
            name: of the trial, which no other one of this run has.
            parameters: of the trial.
            metrics: of the trial. `seconds` is its duration, `failure` a text if it failed, and
                its curves are those that `trials.trial_metrics` describes.
            ended_at_s: seconds since 1970, of a trial of an earlier run, which is logged unless
                that run has done so; None: just now.
        """
        self._known_children.add(name)
        end_s = time.time() if ended_at_s is None else ended_at_s
        seconds = metrics.get("seconds")
        duration_s = seconds if is_finite_number(seconds) else 0.0
        flat = dict(mlflow_parameters(parameters))
        trial = Trial(
            key=uuid.uuid4().hex,
            computation=computation_digest(name, flat, metrics),
            name=without_credentials(name),
            parameters=flat,
            metrics=trial_metrics(metrics, end_s - duration_s, end_s),
            start_ms=int(1000 * (end_s - duration_s)),
            end_ms=int(1000 * end_s),
            failure=without_credentials(str(metrics.get("failure") or "")),
            is_reused=ended_at_s is not None,
        )
        self._send(Call("log_child", (trial,), creates=True))

    def has_child(self, name: str) -> bool:
        """Return whether a trial of this name was logged by this run."""
        return name in self._known_children

    def log_note(self, text: str) -> None:
        """Show a text in Markdown on the run's page."""
        self._notes.append(without_credentials(text, self.uri))

    def log_file(self, path: Path, folder: str) -> None:
        """Store a file, or all files of a folder, among the run's artifacts."""
        self._send(Call("log_file", (str(path), folder), limit_s=self._upload_limit_s(path)))

    def log_numbers(self, numbers: Mapping[str, float], *, source: str) -> None:
        """Log single numbers by their keys; they are sent in batches.

        Args:
            numbers: key -> number.
            source: what logs them.
        """
        if self._is_usable():
            for key, value in numbers.items():
                self._pending.add(mlflow_key(key), value, 0, source=source)

    def log_text(self, text: str, file: str) -> None:
        """Store a text as a file among the run's artifacts."""
        self._send(Call("log_text", (text, file)))

    def log_image(self, path: Path) -> None:
        """Add an image file to the run's image grid."""
        key = mlflow_key(path.stem)
        self._send(Call("log_image", (str(path), key), limit_s=self._upload_limit_s(path)))

    def log_dataset(self, name: str, data: Any) -> None:
        """Add an image store or a table to the run's data sets: name, digest, number of rows."""
        if name in self._known_datasets or not self._is_usable():
            return
        self._known_datasets.add(name)
        try:
            # Stores and sharded tables have a fingerprint, other tables do not.
            fingerprint = getattr(data, "fingerprint", None)
            digest = str(fingerprint or table_digest(data))[:MAX_DIGEST_LENGTH]
            profile = json.dumps({"num_rows": len(data)})
        # Any error: an entry of a user's catalog may hold anything.
        except Exception as error:
            logger.warning("%s cannot be logged to MLflow as a data set: %s", name, error)
            return
        source = json.dumps({"catalog": name})
        self._send(Call("log_dataset", (name, digest, source, profile)))

    def log_model(self, name: str, model: Model, examples: np.ndarray | None) -> None:
        """Log a classifier as an exported graph that takes pixels; `student_model` is registered.

        A network that torch cannot export costs a warning and is not logged.

        Args:
            name: name of the logged model, that of its catalog entry.
            model: on any device; left unchanged.
            examples: (2, C, H, W) uint8 images for the input example; None: a pattern.
        """
        if not self._is_usable():
            return
        from pu_kd_pipeline.tracking.model_export import export_model

        self._known_models.add(name)
        key = uuid.uuid4().hex
        try:
            if self._exports is None:
                self._exports = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            folder = Path(self._exports.name) / key
            export_model(model, examples, folder)
        # Any error: a user's network may do anything that torch.export cannot trace.
        except Exception as error:
            logger.warning("%s cannot be exported and is not registered in MLflow: %s", name, error)
            self._unexported_models.add(model.fingerprint())
            return
        fingerprint = model.fingerprint()
        record = model_record(name, model.card, self.config.registered_model, fingerprint)
        self._send_model(key, record, folder)
        if self.config.served_model and record.registered_name:
            self._log_file_model(model, folder, file_model_record(record, self.config.served_model))

    def _log_file_model(self, model: Model, exported: Path, record: ModelRecord) -> None:
        """Log the form of an exported model that takes files."""
        from pu_kd_pipeline.tracking.file_model import export_file_model

        key = uuid.uuid4().hex
        folder = exported.with_name(key)
        try:
            export_file_model(model, exported, folder)
        # Such as a full disk: the model itself is logged.
        except Exception as error:
            logger.warning("%s is not registered in MLflow: %s", record.name, error)
            return
        self._send_model(key, record, folder)

    def _send_model(self, key: str, record: ModelRecord, folder: Path) -> None:
        args = (key, record, str(folder))
        limit_s = self._upload_limit_s(folder)
        self._send(Call("log_model", args, creates=True, limit_s=limit_s))

    def link_model(self, name: str, model: Model) -> None:
        """Link a model of an earlier run, which this run reads, or which is still up to date.

        A model that this run has logged is left alone.

        Args:
            name: name of its catalog entry.
            model: the model.
        """
        if name in self._known_models or not self._is_usable():
            return
        self._known_models.add(name)
        try:
            fingerprint = model.fingerprint()
        # Any error: an entry of a user's catalog may hold anything.
        except Exception as error:
            logger.warning("%s cannot be linked in MLflow: %s", name, error)
            return
        self._send(Call("link_model", (name, fingerprint)))

    def log_certificate(self, name: str, certificate: Mapping[str, Any]) -> None:
        """Store a certificate with the models of the same fingerprint, whichever run logged them.

        Args:
            name: of the catalog entry, for messages.
            certificate: result of `certificate.make_certificate`.
        """
        if not self._is_usable():
            return
        try:
            record = certificate_record(certificate)
        except ValueError as error:
            logger.warning("%s is not stored with a model in MLflow: %s", name, error)
            return
        # There is no such model, and a warning has said so.
        if record.student not in self._unexported_models:
            self._send(Call("attach_certificate", (record,)))

    # --- the end ----------------------------------------------------------------------------------

    def end(self, status: Status, sentence: str = "") -> None:
        """Close the run with `status` and a last sentence in its note; later calls do nothing.

        Waits for MLflow as long as the configuration allows, and less if the run was killed.
        """
        if not self._is_usable():
            return
        self.outbox.retry_at_once()
        self.flush()
        note = None
        # In a shared run, a stage without results must not replace another one's note.
        if sentence or self.metrics or self._notes or not self.shared_run_id:
            note = self._note(without_credentials(sentence, self.uri))
        close = Call("close", (status, note))
        self._send(close)
        limit_s = self._end_limit_s(status)
        self._is_ending = True
        # Importing MLflow is not its server's fault: a run of a few seconds waits for that first.
        self._is_loaded.wait(SECONDS_TO_LOAD_AT_END)
        # If Ctrl-C or a signal interrupts this, `atexit` calls `end` once more.
        n_left = self.outbox.wait(limit_s)
        if n_left:
            was_lost = self.is_lost
            self._store_status(close, status)
        if n_left and not was_lost:
            logger.warning(
                "MLflow at %s did not take everything within %.0f seconds: %d calls are lost "
                "(`max_wait_s` in conf/base/mlflow.yml sets how long a run waits at its end)",
                self.address,
                limit_s,
                n_left,
            )
        self._finish()

    def _end_limit_s(self, status: Status) -> float:
        if status == "KILLED" or self._is_ending:
            return SECONDS_WHEN_KILLED
        share_s = MAX_TIME_SHARE * (time.monotonic() - self._start)
        return max(self.config.max_wait_s, share_s)

    def _store_status(self, close: Call, status: Status) -> None:
        """Try once more for the status alone, which matters most."""
        is_answering = self.open_run_id is not None and not self.is_lost
        if is_answering and status != "KILLED":
            # A slow server finishes the call in progress, and the status comes next.
            self.outbox.clear()
            self.outbox.send(close)
            if not self.outbox.wait(SECONDS_FOR_STATUS):
                return
        self.outbox.clear()
        self.worker.kill()
        if self.open_run_id:
            self.outbox.retry_at_once()
            self.outbox.send(close)
            self.outbox.wait(SECONDS_FOR_STATUS_OF_NEW_PROCESS)

    def _finish(self) -> None:
        atexit.unregister(self.end)
        self.is_closed = True
        self.outbox.clear()
        self.worker.kill()
        if self._exports is not None:
            self._exports.cleanup()

    # --- calls, in the thread of the outbox -------------------------------------------------------

    def _is_usable(self) -> bool:
        # A forked process must not use its parent's connection.
        return not self.is_closed and os.getpid() == self._process_id

    def _send(self, call: Call) -> None:
        if self._is_usable():
            self.outbox.send(call)

    def _upload_limit_s(self, path: Path) -> float:
        n_bytes = 0
        with contextlib.suppress(OSError):
            files = [path, *path.rglob("*")]
            n_bytes = sum(file.stat().st_size for file in files)
        return self._call_limit_s + n_bytes / MIN_BYTES_PER_SECOND

    def _perform(self, call: Call) -> None:
        if call.method == "load":
            self._load()
            return
        try:
            self._connect()
        except WorkerError as error:
            raise UnreachableError(str(error)) from None
        if call.method == FLUSH:
            self._send_pending()
            return
        options = {}
        if call.creates:
            options["is_repeated"] = call.n_attempts > 1
        self._call(call.method, *call.args, limit_s=call.limit_s, **options)

    def _load(self) -> None:
        try:
            self.worker.call("load", limit_s=SECONDS_TO_LOAD)
        finally:
            self._is_loaded.set()

    def _connect(self) -> None:
        """Make sure that there is a process in which the run is open, and that MLflow answers."""
        if self.worker.is_running and self._opened_start == self.worker.n_starts:
            if self.is_lost:
                self._call("check", limit_s=self._call_limit_s)
            return
        self._load()
        is_repeated = self._n_openings > 0
        self._n_openings += 1
        self.open_run_id = self._call(
            "open",
            self.settings,
            self.open_run_id,
            limit_s=self._call_limit_s,
            is_repeated=is_repeated,
        )
        self._opened_start = self.worker.n_starts
        if not self._is_left_behind_closed:
            self._is_left_behind_closed = True
            # Nothing of this run depends on it.
            with contextlib.suppress(WorkerError):
                self._call("close_left_behind", limit_s=self._call_limit_s)

    def _send_pending(self) -> None:
        start = time.monotonic()
        for metrics in self._pending.taken_in_batches(MAX_METRICS_PER_REQUEST):
            self._call(FLUSH, metrics, limit_s=self._call_limit_s)
        self._flushed_at = time.monotonic()
        # A slow server may be asked for at most this share of the time.
        pause = (time.monotonic() - start) / MAX_TIME_SHARE
        self._seconds_between_flushes = max(SECONDS_BETWEEN_FLUSHES, pause)

    def _call(self, method: str, *args: Any, limit_s: float, **options: Any) -> Any:
        value, warnings = self.worker.call(method, *args, limit_s=limit_s, **options)
        for warning in warnings:
            logger.warning("%s", without_credentials(warning, self.uri))
        return value

    def _note(self, *sentences: str) -> str:
        command = " ".join(["kedro", *sys.argv[1:]])
        # A backtick would end the part of the note that is shown as code.
        shown_command = visible(without_credentials(command)).replace("`", "'")
        if len(shown_command) > MAX_COMMAND_LENGTH:
            shown_command = f"{shown_command[:MAX_COMMAND_LENGTH]} …"
        first_sentence = f"`{shown_command}`, environment `{self.environment}`"
        note = markdown_note(first_sentence, *sentences, *self._notes, metrics=self.metrics)
        if len(note) <= MAX_NOTE_LENGTH:
            return note
        # A table is cut between two rows, and a long sentence where it is.
        cut = note[:MAX_NOTE_LENGTH]
        start, _, _ = cut.rpartition("\n")
        if len(start) < MAX_NOTE_LENGTH / 2:
            start = f"{cut} …"
        return f"{start}\n\nThe rest is in the files among the artifacts of this run."
