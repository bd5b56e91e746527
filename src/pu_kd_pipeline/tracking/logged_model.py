"""Classifiers in MLflow: exported graphs with their signature, never pickles."""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pu_kd_pipeline.tracking.config import ENVIRONMENT
from pu_kd_pipeline.tracking.run_metadata import requirement

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from torch import nn

REQUIRED_PACKAGES = ("torch", "numpy", "mlflow")
KEY_TAG = "key"


def export_model(network: nn.Module, input_shape: tuple[int, int, int], folder: Path) -> None:
    """Write an MLflow model folder that holds the traced graph of a copy of `network`.

    It is computed where the network is, in the run; nothing is sent anywhere.

    Args:
        network: maps (N, C, H, W) float32 to (N, K) float32, on any device; it is left unchanged.
        input_shape: C, H, W.
        folder: created.
    """
    # Read when MLflow is imported: it sends telemetry otherwise.
    for name in ("MLFLOW_DISABLE_TELEMETRY",):
        os.environ.setdefault(name, ENVIRONMENT[name])
    import numpy as np
    import torch
    from mlflow import pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Two images: with a batch of one, the export would fix the batch size to one.
    example = np.zeros((2, *input_shape), dtype=np.float32)
    exported = copy.deepcopy(network).cpu().float().eval()
    with torch.no_grad():
        n_classes = exported(torch.from_numpy(example)).shape[1]
    float32 = np.dtype(np.float32)
    inputs = Schema([TensorSpec(float32, (-1, *input_shape))])
    outputs = Schema([TensorSpec(float32, (-1, n_classes))])
    pytorch.save_model(
        exported,
        str(folder),
        signature=ModelSignature(inputs, outputs),
        input_example=example,
        pip_requirements=[requirement(package) for package in REQUIRED_PACKAGES],
        serialization_format="pt2",
    )


def log_exported_model(
    client: MlflowClient,
    run_id: str,
    name: str,
    folder: Path,
    *,
    key: str,
    registered_name: str | None,
    is_repeated: bool,
) -> None:
    """Log an exported model as an output of the run, and register it.

    Args:
        client: connection to the tracking store.
        run_id: the run that made the model.
        name: name of the logged model.
        folder: what `export_model` wrote.
        key: of the model, by which it is found again.
        registered_name: name in the model registry; None: the model is not registered.
        is_repeated: whether an earlier attempt may have done a part of this.
    """
    from mlflow.entities import LoggedModelOutput

    experiment_id = client.get_run(run_id).info.experiment_id
    logged = None
    if is_repeated:
        logged = _model_with_key(client, experiment_id, key)
    if logged is None:
        tags = {KEY_TAG: key}
        logged = client.create_logged_model(experiment_id, name, source_run_id=run_id, tags=tags)
    model_id = logged.model_id
    _name_in_description(folder, run_id, model_id)
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    if registered_name:
        _register(client, registered_name, run_id, logged, is_repeated=is_repeated)


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


def _register(
    client: MlflowClient, name: str, run_id: str, logged: LoggedModel, *, is_repeated: bool
) -> None:
    from mlflow.exceptions import MlflowException

    if is_repeated:
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        if any(version.model_id == logged.model_id for version in versions):
            return
    # MLflow raises if the name exists already; the model then becomes its next version.
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    client.create_model_version(
        name, logged.artifact_location, run_id, await_creation_for=0, model_id=logged.model_id
    )
