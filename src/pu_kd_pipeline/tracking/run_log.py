"""One MLflow run, as the process that talks to MLflow writes it; the only user of MLflow's client.

Every method can be called again with the same arguments after it failed half-way: what creates
something first looks for what an earlier attempt may have created.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline import __version__
from pu_kd_pipeline.tracking.experiments import AskedExperiment, choose_experiment
from pu_kd_pipeline.tracking.keys import mlflow_key
from pu_kd_pipeline.tracking.left_behind import PROCESS_TAG, close_left_behind
from pu_kd_pipeline.tracking.locations import follow_moved_folder
from pu_kd_pipeline.tracking.processes import identity_of
from pu_kd_pipeline.tracking.run_metadata import git_commit, user_name
from pu_kd_pipeline.tracking.run_names import (
    DATA,
    MAX_TAG_LENGTH,
    VIEW_TAG,
    first_name,
    full_name,
    is_given_by_a_run,
    new_tags,
    view_state,
)
from pu_kd_pipeline.tracking.stages import STAGE_TAG, overall_status
from pu_kd_pipeline.tracking.stores import DATABASE, is_server, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from pu_kd_pipeline.tracking.certificates import CertificateRecord
    from pu_kd_pipeline.tracking.model_description import ModelRecord
    from pu_kd_pipeline.tracking.trials import Trial

# The most that one request to an MLflow server may hold.
MAX_PARAMETERS_PER_REQUEST = 100
# Of 1,000 entries of all kinds: this leaves room for the parameters.
MAX_METRICS_PER_REQUEST = 900
KEY_TAG = "key"
COMPUTATION_TAG = "computation"
NAME_TAG = "mlflow.runName"
CHILD_STAGE = "trial"
# Parameters of a trial that are columns in the list of runs.
SHOWN_PARAMETERS = ("variant", "seed")
REUSED_TAG = "computed_by_an_earlier_run"
SECONDS_FOR_MONITOR = 5.0


@dataclass(frozen=True)
class RunSettings:
    """What it takes to open a run."""

    uri: str
    folder: Path
    """Of the default database and of artifacts."""
    project_path: Path
    asked_experiment: AskedExperiment
    shared_run_id: str | None
    stage: str
    environment: str
    data: str
    """The data folder; "" if it is not known."""
    note: str
    parameters: Mapping[str, str]
    started_at_ms: int
    key: str
    """Of this run, by which it is found again."""
    system_metrics_interval_s: float | None


class RunLog:
    """Writes one run; `open` comes first.

    Args:
        run_process_id: process whose run this is.
    """

    client: MlflowClient
    run_id: str
    settings: RunSettings

    def __init__(self, run_process_id: int) -> None:
        self.run_process_id = run_process_id
        self.uri = ""
        self.warnings: list[str] = []
        self.is_open = False
        self._system_metrics: Any = None

    # --- the run ----------------------------------------------------------------------------------

    def load(self) -> None:
        """Import MLflow, which takes seconds."""
        import_module("mlflow")

    def open(self, settings: RunSettings, run_id: str | None, *, is_repeated: bool) -> str:
        """Open the run and return its identifier.

        Args:
            settings: of the run.
            run_id: of the run if it was opened before, by a process that has ended.
            is_repeated: whether an earlier attempt may have created the run.
        """
        self._connect(settings)
        run = None
        if run_id:
            run = self.client.get_run(run_id)
        elif settings.shared_run_id:
            run = self._shared_run(settings.shared_run_id)
        if run is None:
            run = self._own_run(self._stage_tags(), is_repeated=is_repeated)
        self.run_id = run.info.run_id
        if run.info.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        for key, value in self._stage_tags().items():
            if run.data.tags.get(key) != value:
                self.client.set_tag(self.run_id, key, value)
        for key, value in new_tags(run.data.tags, settings.parameters).items():
            self.client.set_tag(self.run_id, key, value)
        self.is_open = True
        self._log_parameters(run)
        self._start_system_metrics(is_continued=bool(run_id or settings.shared_run_id))
        return self.run_id

    def open_shared(self, settings: RunSettings) -> str:
        """Create a run that stages will share, and return its identifier."""
        self._connect(settings)
        # No process is its owner: its stages have not started yet.
        run = self._own_run({}, is_repeated=False)
        return str(run.info.run_id)

    def check(self) -> None:
        """Raise unless MLflow answers."""
        self.client.get_run(self.run_id)

    def close_left_behind(self) -> None:
        """Close runs of processes that ended without closing them."""
        experiment_id = self.client.get_run(self.run_id).info.experiment_id
        close_left_behind(self.client, experiment_id)

    def close(self, status: str, note: str | None) -> None:
        """Close the run with a status and a note; None: the note stays."""
        self._stop_system_metrics()
        self._set_stage_status(status)
        run = self.client.get_run(self.run_id)
        tags = run.data.tags
        # While another stage is running, it will close the run.
        is_last = overall_status(tags) != "RUNNING"
        if is_last:
            self.client.set_terminated(self.run_id, overall_status(tags))
        self.is_open = False
        # A slow server may have no time for it, and the status matters more.
        if note is not None:
            self.client.set_tag(self.run_id, "mlflow.note.content", note)
        if is_last:
            self._complete_name(run)

    def _complete_name(self, run: Run) -> None:
        """Give the run a name that says what it was and what came out; a store may refuse it."""
        from mlflow.exceptions import MlflowException

        tags = run.data.tags
        name = run.info.run_name or ""
        start = first_name(tags.get("pipeline", ""), tags.get("env", ""))
        complete = full_name(start, tags, run.data.metrics)
        # A name that a person has chosen stays.
        if is_given_by_a_run(name, start) and name != complete:
            # Not `update_run`, which also writes the status that it has read: another stage may
            # have changed it meanwhile. A store renames the run when this tag is set.
            with contextlib.suppress(MlflowException):
                self.client.set_tag(self.run_id, NAME_TAG, complete)

    def close_if_open(self, status: str) -> None:
        """Close a run whose process has ended."""
        if self.is_open:
            self.close(status, None)

    def _connect(self, settings: RunSettings) -> None:
        self.settings = settings
        self.uri = settings.uri
        self.load()
        database = sqlite_file(settings.uri)
        if database is not None:
            _check_database(database)
            if database == settings.folder / DATABASE:
                follow_moved_folder(database, settings.folder / "artifacts")
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=settings.uri)

    def _shared_run(self, run_id: str) -> Run | None:
        """Return the run that stages share; None, with a warning, if it is gone."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.warnings.append(
                f"MLFLOW_RUN_ID is {run_id}, and MLflow has no such run: "
                "this stage is logged as a run of its own"
            )
            return None
        if run.info.lifecycle_stage == "active":
            return run
        self.warnings.append(
            f"the MLflow run {run_id} is deleted: this stage is logged as a run of its own. To "
            f"have it back, set MLFLOW_TRACKING_URI and run `mlflow runs restore --run-id {run_id}`"
        )
        return None

    def _own_run(self, stage_tags: Mapping[str, str], *, is_repeated: bool) -> Run:
        artifact_location = None
        if not is_server(self.uri):
            artifact_location = (self.settings.folder / "artifacts").as_uri()
        experiment_id = choose_experiment(
            self.client, self.settings.asked_experiment, artifact_location, self.warnings
        )
        if is_repeated:
            made_before = self._run_with_key(experiment_id, self.settings.key)
            if made_before is not None:
                return made_before
        self._show_columns(experiment_id)
        name = first_name(self.settings.stage, self.settings.environment)
        tags = {**self._tags(), **stage_tags}
        return self.client.create_run(experiment_id, self.settings.started_at_ms, tags, name)

    def _show_columns(self, experiment_id: str) -> None:
        """Store with the experiment which columns its list of runs shows.

        Another version of MLflow ignores the tag, or refuses it: the list is then its own.
        """
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            tags = self.client.get_experiment(experiment_id).tags
            if tags.get(VIEW_TAG) != view_state():
                self.client.set_experiment_tag(experiment_id, VIEW_TAG, view_state())

    def _run_with_key(self, experiment_id: str, key: str) -> Run | None:
        found = self.client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
        for run in found:
            return run
        return None

    def _tags(self) -> dict[str, str]:
        tags = {
            "pipeline": self.settings.stage,
            "env": self.settings.environment,
            DATA: self.settings.data[:MAX_TAG_LENGTH],
            "version": __version__,
            KEY_TAG: self.settings.key,
            "mlflow.source.type": "LOCAL",
            # The page shows only what follows the last slash, so the full command is in the note.
            "mlflow.source.name": "kedro run",
            "mlflow.source.git.commit": git_commit(self.settings.project_path),
            "mlflow.user": user_name(),
            "mlflow.note.content": self.settings.note,
        }
        # Outside a repository there is no commit, and in a container perhaps no user.
        return {key: value for key, value in tags.items() if value}

    def _stage_tags(self) -> dict[str, str]:
        """Return the tags by which another run knows whether this one still runs."""
        identity = identity_of(self.run_process_id)
        return {
            STAGE_TAG + self.settings.stage: "RUNNING",
            PROCESS_TAG + self.settings.stage: identity.to_text(),
        }

    def _set_stage_status(self, status: str) -> None:
        self.client.set_tag(self.run_id, STAGE_TAG + self.settings.stage, status)

    def _log_parameters(self, run: Run) -> None:
        """Log new parameters; a shared run cannot change one, so a changed value becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = run.data.params
        new = []
        changed = []
        for key, value in self.settings.parameters.items():
            if key not in known:
                new.append(Param(key, value))
            elif known[key] != value:
                tag_key = mlflow_key(f"changed.{key}")
                changed.append(RunTag(tag_key, value))
        # The limit is one for parameters and one for tags: a request may hold both.
        n_longer = max(len(new), len(changed))
        for start in range(0, n_longer, MAX_PARAMETERS_PER_REQUEST):
            end = start + MAX_PARAMETERS_PER_REQUEST
            self.client.log_batch(self.run_id, params=new[start:end], tags=changed[start:end])

    def _start_system_metrics(self, *, is_continued: bool) -> None:
        interval_s = self.settings.system_metrics_interval_s
        if not interval_s:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._system_metrics = SystemMetricsMonitor(
            self.run_id, interval_s, resume_logging=is_continued, tracking_uri=self.uri
        )
        self._system_metrics.start()

    def _stop_system_metrics(self) -> None:
        monitor = self._system_metrics
        self._system_metrics = None
        if monitor is None:
            return
        # Its thread may hang in a request, and the status of the run matters more.
        stopping = threading.Thread(target=monitor.finish, daemon=True)
        stopping.start()
        stopping.join(SECONDS_FOR_MONITOR)

    # --- what is logged ---------------------------------------------------------------------------

    def log_metrics(self, values: Iterable[tuple[str, float, int, int]]) -> None:
        """Log (name, value, time in milliseconds, step); twice is the same as once."""
        from mlflow.entities import Metric

        metrics = [Metric(*value) for value in values]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_child(self, trial: Trial, *, is_repeated: bool = False) -> None:
        """Log one trial as a finished child run; one that an earlier run has logged is left out.

        Args:
            trial: the trial.
            is_repeated: whether an earlier attempt may have created the child run.
        """
        from mlflow.entities import Metric, Param

        parent = self.client.get_run(self.run_id)
        experiment_id = parent.info.experiment_id
        child = None
        if is_repeated:
            child = self._run_with_key(experiment_id, trial.key)
        if child is None and trial.is_reused and self._is_logged(experiment_id, trial):
            return
        if child is None:
            child = self._create_child(parent, trial)
        child_id = child.info.run_id
        numbers = [Metric(*metric) for metric in trial.metrics]
        params = [Param(param_key, value) for param_key, value in trial.parameters.items()]
        first_params = params[:MAX_PARAMETERS_PER_REQUEST]
        first_numbers = numbers[:MAX_METRICS_PER_REQUEST]
        self.client.log_batch(child_id, metrics=first_numbers, params=first_params)
        for start in range(MAX_METRICS_PER_REQUEST, len(numbers), MAX_METRICS_PER_REQUEST):
            end = start + MAX_METRICS_PER_REQUEST
            self.client.log_batch(child_id, metrics=numbers[start:end])
        status = "FINISHED"
        if trial.failure:
            status = "FAILED"
            self.client.set_tag(child_id, "mlflow.note.content", trial.failure)
        self.client.set_tag(child_id, STAGE_TAG + CHILD_STAGE, status)
        self.client.set_terminated(child_id, status, trial.end_ms)

    def _is_logged(self, experiment_id: str, trial: Trial) -> bool:
        """Return whether an earlier run has logged this very computation to the end."""
        found = self.client.search_runs(
            [experiment_id], f"tags.`{COMPUTATION_TAG}` = '{trial.computation}'"
        )
        return any(run.info.status in ("FINISHED", "FAILED") for run in found)

    def _create_child(self, parent: Run, trial: Trial) -> Run:
        tags = {
            "mlflow.parentRunId": parent.info.run_id,
            "mlflow.user": parent.data.tags.get("mlflow.user", ""),
            KEY_TAG: trial.key,
            COMPUTATION_TAG: trial.computation,
            # If this process ends here, the next run closes the child.
            STAGE_TAG + CHILD_STAGE: "RUNNING",
            PROCESS_TAG + CHILD_STAGE: identity_of(self.run_process_id).to_text(),
        }
        for name in SHOWN_PARAMETERS:
            if name in trial.parameters:
                tags[name] = trial.parameters[name]
        if trial.is_reused:
            tags[REUSED_TAG] = "true"
        return self.client.create_run(parent.info.experiment_id, trial.start_ms, tags, trial.name)

    def log_file(self, path: str, folder: str) -> None:
        """Store a file, or all files of a folder, among the run's artifacts."""
        if Path(path).is_dir():
            self.client.log_artifacts(self.run_id, path, f"{folder}/{Path(path).name}")
        else:
            self.client.log_artifact(self.run_id, path, folder)

    def log_text(self, text: str, file: str) -> None:
        """Store a text as a file among the run's artifacts."""
        self.client.log_text(self.run_id, text, file)

    def log_image(self, path: str, key: str) -> None:
        """Add an image file to the run's image grid."""
        from PIL import Image

        with Image.open(path) as image:
            self.client.log_image(self.run_id, image.convert("RGB"), key=key, step=0)

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Add a data set to the run; source and profile are JSON."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", source, profile=profile)
        tag = InputTag("mlflow.data.context", name)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])

    def log_model(self, key: str, record: ModelRecord, folder: str, *, is_repeated: bool) -> None:
        """Log the model that `export_model` wrote to a folder, and register it."""
        from pu_kd_pipeline.tracking.logged_model import alias_of, log_exported_model

        if self.settings.data:
            # Students of different data may have other classes, and share a name and an alias.
            tags = {**record.tags, DATA: self.settings.data[:MAX_TAG_LENGTH]}
            record = replace(record, tags=tags)
        log_exported_model(
            self.client,
            self.run_id,
            record,
            Path(folder),
            key=key,
            alias=alias_of(self.settings.environment),
            is_repeated=is_repeated,
        )

    def link_model(self, name: str, fingerprint: str) -> None:
        """Link a model that an earlier run has logged; twice is the same as once."""
        from pu_kd_pipeline.tracking.logged_model import link_model

        if not link_model(self.client, self.run_id, name, fingerprint):
            self.warnings.append(
                f"MLflow has no {name} of this fingerprint: the run that trained it was logged "
                "elsewhere or not at all, or torch could not export the network. This run is "
                "logged without the model; `--force` trains it again, and logs it if torch can "
                "export it"
            )

    def attach_certificate(self, record: CertificateRecord) -> None:
        """Store a certificate with the models that it describes; twice is the same as once."""
        from pu_kd_pipeline.tracking.logged_model import attach_certificate

        if not attach_certificate(self.client, self.run_id, record):
            self.warnings.append(
                "MLflow has no model in this experiment that the certificate is about: it is among "
                "the artifacts of the run alone"
            )

    def tag_accuracies(self, accuracies: Mapping[str, float]) -> None:
        """Store the test accuracies of the run's models with them; twice is the same as once."""
        from pu_kd_pipeline.tracking.logged_model import link_metrics, tag_accuracies

        tag_accuracies(self.client, self.run_id, accuracies)
        link_metrics(self.client, self.run_id)


def _check_database(database: Path) -> None:
    """Raise if a SQLite file cannot be read or written; MLflow itself would try for 100 seconds."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database, timeout=0.0)) as store:
        # Reads the header, and creates the file if there is none. A lock is no fault of the file.
        try:
            store.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
