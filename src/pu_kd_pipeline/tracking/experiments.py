"""The experiment that a run belongs to: the one that was asked for, or the next best."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

MAX_NAMES = 1000


@dataclass(frozen=True)
class AskedExperiment:
    """What the environment and conf/base/mlflow.yml say about the experiment."""

    configured_name: str
    name: str | None
    """MLFLOW_EXPERIMENT_NAME, which counts more than the others."""
    experiment_id: str | None
    """MLFLOW_EXPERIMENT_ID."""


def asked_experiment(configured_name: str) -> AskedExperiment:
    """Return what MLflow's variables ask for; an empty one counts as not set."""
    return AskedExperiment(
        configured_name,
        os.environ.get("MLFLOW_EXPERIMENT_NAME") or None,
        os.environ.get("MLFLOW_EXPERIMENT_ID") or None,
    )


def choose_experiment(
    client: MlflowClient,
    asked: AskedExperiment,
    artifact_location: str | None,
    warnings: list[str],
) -> str:
    """Return the identifier of the experiment to log to; it is created if there is none.

    An experiment that is deleted stays so: restoring it would restore all its deleted runs. A run
    is then logged to one whose name ends in a number.

    Args:
        client: connection to the store.
        asked: what was asked for.
        artifact_location: where a new experiment keeps its files; None: the server decides.
        warnings: gets a sentence if the run is logged elsewhere than asked for.
    """
    name = asked.name or asked.configured_name
    if asked.experiment_id:
        by_id = _experiment(client, asked.experiment_id)
        if by_id is None:
            warnings.append(
                f"MLFLOW_EXPERIMENT_ID is {asked.experiment_id}, and MLflow has no such "
                f"experiment: the run is logged to {name!r}"
            )
        elif asked.name and by_id.name != asked.name:
            warnings.append(
                f"MLFLOW_EXPERIMENT_ID names the experiment {by_id.name!r}, and "
                f"MLFLOW_EXPERIMENT_NAME is {asked.name!r}: the run is logged to the latter"
            )
        elif by_id.lifecycle_stage == "active":
            return str(by_id.experiment_id)
        else:
            name = by_id.name
    return _active_experiment(client, name, artifact_location, warnings)


def _experiment(client: MlflowClient, experiment_id: str) -> Experiment | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _active_experiment(
    client: MlflowClient, name: str, artifact_location: str | None, warnings: list[str]
) -> str:
    deleted: Experiment | None = None
    for number in range(1, MAX_NAMES):
        numbered_name = name
        if number > 1:
            numbered_name = f"{name}-{number}"
        known = client.get_experiment_by_name(numbered_name)
        if known is not None and known.lifecycle_stage != "active":
            deleted = deleted or known
            continue
        if deleted:
            warnings.append(
                f"the MLflow experiment {deleted.name!r} is deleted: the run is logged to "
                f"{numbered_name!r}. To have it back, set MLFLOW_TRACKING_URI and run `mlflow "
                f"experiments restore --experiment-id {deleted.experiment_id}`"
            )
        if known is not None:
            return str(known.experiment_id)
        return _create(client, numbered_name, artifact_location)
    raise RuntimeError(f"{MAX_NAMES} experiments named {name!r} are deleted")


def _create(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location))
    except MlflowException:
        # Another run may have created it a moment ago.
        known = client.get_experiment_by_name(name)
        if known is None:
            raise
        return str(known.experiment_id)
