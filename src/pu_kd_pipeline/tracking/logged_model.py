"""Exported classifiers in MLflow: as outputs of a run and in the model registry."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pu_kd_pipeline.tracking.certificates import CERTIFICATE_FILE, CertificateRecord
from pu_kd_pipeline.tracking.model_description import (
    FILES_SUFFIX,
    FINGERPRINT,
    MODEL_URI,
    REGISTERED_DESCRIPTION,
    REGISTERED_FILES_DESCRIPTION,
    ModelRecord,
    base_name,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

KEY_TAG = "key"
MODEL_SUFFIX = "_model"  # ends the names of models in the catalog
# Of a model, in the metrics of a run.
LINKED_METRICS = ("accuracy", "agreement", "parameters", "flops", "latency_ms", "size_bytes")
MAX_ALIAS_LENGTH = 100
ACCURACY_TAG = "accuracy"
# Where MLflow's pages look for the description of a logged model.
DESCRIPTION_TAG = "mlflow.note.content"


def log_exported_model(
    client: MlflowClient,
    run_id: str,
    record: ModelRecord,
    folder: Path,
    *,
    key: str,
    alias: str,
    is_repeated: bool,
) -> None:
    """Log an exported model as an output of the run, and register it.

    Args:
        client: connection to the tracking store.
        run_id: the run that made the model.
        record: its name, description and tags.
        folder: what `export_model` wrote.
        key: of the model, by which it is found again.
        alias: in the registry, which the new version takes from the one before.
        is_repeated: whether an earlier attempt may have done a part of this.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    experiment_id = client.get_run(run_id).info.experiment_id
    tags = {**record.tags, "run": run_id}
    logged = None
    if is_repeated:
        logged = _model_with_key(client, experiment_id, key)
    if logged is None:
        own_tags = {**tags, KEY_TAG: key}
        logged = client.create_logged_model(
            experiment_id, record.name, source_run_id=run_id, tags=own_tags
        )
    model_id = logged.model_id
    description = record.description.replace(MODEL_URI, f"models:/{model_id}")
    _name_in_description(folder, run_id, model_id)
    client.set_logged_model_tags(model_id, {DESCRIPTION_TAG: description})
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    name = record.registered_name
    if name and not (is_repeated and _versions(client, run_id, logged)):
        _register(client, name, run_id, logged, tags, description)
    for registered, version in _versions(client, run_id, logged):
        # A registry without aliases has the versions all the same.
        with contextlib.suppress(MlflowException):
            client.set_registered_model_alias(registered, alias, version)


def alias_of(environment: str) -> str:
    """Return the alias of the newest version that an environment has made, as MLflow accepts it.

    The students of different environments are of different data as a rule: none of them is newer
    than another one's. Those of different data folders of one environment share the alias.
    """
    alias = re.sub(r"[^\w-]", "-", environment, flags=re.ASCII)[:MAX_ALIAS_LENGTH]
    # MLflow keeps these for itself.
    if alias.lower() == "latest" or re.fullmatch(r"[vV]?\d+", alias):
        return f"env-{alias}"
    return alias


def link_model(client: MlflowClient, run_id: str, name: str, fingerprint: str) -> bool:
    """Make a model of an earlier run an input of this one, and return whether there is one."""
    from mlflow.entities import LoggedModelInput

    experiment_id = client.get_run(run_id).info.experiment_id
    found = list(
        client.search_logged_models([experiment_id], f"tags.`{FINGERPRINT}` = '{fingerprint}'")
    )
    # Of each form, the newest, which comes first.
    newest: dict[str, LoggedModel] = {}
    for logged in found:
        if base_name(logged.name) == name:
            newest.setdefault(logged.name, logged)
    if not newest:
        return False
    models = [LoggedModelInput(logged.model_id) for logged in newest.values()]
    client.log_inputs(run_id, models=models)
    return True


def _models_of(client: MlflowClient, run_id: str) -> list[LoggedModel]:
    """Return the models that a run has logged, and those of earlier runs that it reads."""
    run = client.get_run(run_id)
    made_here = f"source_run_id = '{run_id}'"
    models = list(client.search_logged_models([run.info.experiment_id], made_here))
    inputs = getattr(run.inputs, "model_inputs", None) or []
    return models + [client.get_logged_model(each.model_id) for each in inputs]


def tag_accuracies(client: MlflowClient, run_id: str, accuracies: Mapping[str, float]) -> None:
    """Store the test accuracy of the models of a run, and of their versions.

    Args:
        client: connection to the tracking store.
        run_id: the run that evaluated the models; it or an earlier one has logged them.
        accuracies: name of a model -> its accuracy; other models are ignored.
    """
    for logged in _models_of(client, run_id):
        entry = base_name(logged.name)
        if entry not in accuracies:
            continue
        text = f"{accuracies[entry]:.4f}"
        client.set_logged_model_tags(logged.model_id, {ACCURACY_TAG: text})
        maker = logged.source_run_id or run_id
        for name, version in _versions(client, maker, logged):
            client.set_model_version_tag(name, version, ACCURACY_TAG, text)


def link_metrics(client: MlflowClient, run_id: str) -> None:
    """Show the metrics of a run on the pages of its models; twice is the same as once.

    Those of `student_model` are the metrics `student/...` that are one number.
    """
    from mlflow.entities import Metric

    logged_metrics = client.get_run(run_id).data.metrics
    for logged in _models_of(client, run_id):
        prefix = f"{base_name(logged.name).removesuffix(MODEL_SUFFIX)}/"
        linked = []
        for name in LINKED_METRICS:
            key = prefix + name
            if key not in logged_metrics:
                continue
            # The same point again, now with its model: another time would make it a second one.
            point = client.get_metric_history(run_id, key)[-1]
            linked.append(
                Metric(key, point.value, point.timestamp, point.step, model_id=logged.model_id)
            )
        if linked:
            client.log_batch(run_id, metrics=linked)


def attach_certificate(client: MlflowClient, run_id: str, record: CertificateRecord) -> int:
    """Store a certificate with every model that it describes, and return how many there are.

    These are the models of the run's experiment with the same fingerprint, also those of earlier
    runs: a stage may evaluate what another run has trained. Twice is the same as once.

    Args:
        client: connection to the tracking store.
        run_id: a run of the experiment.
        record: the certificate.
    """
    experiment_id = client.get_run(run_id).info.experiment_id
    is_student = f"tags.`{FINGERPRINT}` = '{record.student}'"
    found = list(client.search_logged_models([experiment_id], is_student))
    for logged in found:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, CERTIFICATE_FILE).write_text(record.text, encoding="utf-8")
            client.log_model_artifacts(logged.model_id, folder)
        client.set_logged_model_tags(logged.model_id, dict(record.tags))
        # The run that logged it, which may be an earlier one.
        maker = logged.source_run_id or run_id
        for name, version in _versions(client, maker, logged):
            for key, value in record.tags.items():
                client.set_model_version_tag(name, version, key, value)
    return len(found)


def _model_with_key(client: MlflowClient, experiment_id: str, key: str) -> LoggedModel | None:
    found = client.search_logged_models([experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
    for logged in found:
        return logged
    return None


def _name_in_description(folder: Path, run_id: str, model_id: str) -> None:
    """Write the identifiers, which the store chose, into the description of an exported model."""
    from mlflow.models import Model

    path = folder / "MLmodel"
    description = Model.load(str(path))
    description.run_id = run_id
    description.model_id = model_id
    description.model_uuid = model_id
    description.save(str(path))


def _versions(client: MlflowClient, run_id: str, logged: LoggedModel) -> list[tuple[str, str]]:
    """Return (name, version) of the entries of a model in the registry."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    # By the place of its files: not every store returns the identifier of the model.
    place = logged.artifact_location
    return [(version.name, version.version) for version in found if version.source == place]


def _register(
    client: MlflowClient,
    name: str,
    run_id: str,
    logged: LoggedModel,
    tags: Mapping[str, str],
    description: str,
) -> None:
    from mlflow.exceptions import MlflowException

    # MLflow raises if the name exists already; the model then becomes its next version.
    of_all = REGISTERED_DESCRIPTION
    if logged.name.endswith(FILES_SUFFIX):
        of_all = REGISTERED_FILES_DESCRIPTION
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name, description=of_all)
    client.create_model_version(
        name,
        logged.artifact_location,
        run_id,
        tags=dict(tags),
        description=description,
        await_creation_for=0,
        model_id=logged.model_id,
    )
