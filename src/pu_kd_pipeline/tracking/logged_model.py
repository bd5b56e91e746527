"""Classifiers in MLflow: exported graphs with their signature, never pickles."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from typing import TYPE_CHECKING

from pu_kd_pipeline.tracking.run_metadata import requirement

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import nn

logger = logging.getLogger(__name__)

REQUIRED_PACKAGES = ("torch", "numpy", "mlflow")


def log_exported_model(
    client: MlflowClient,
    run_id: str,
    name: str,
    network: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    registered_name: str | None,
) -> None:
    """Export a copy of a network, log it as an output of the run, and register it.

    A network that torch cannot export costs a warning and is not registered.

    Args:
        client: connection to the tracking store.
        run_id: the run that made the model.
        name: name of the logged model.
        network: maps (N, C, H, W) float32 to (N, K) float32, on any device; it is left unchanged.
        input_shape: C, H, W.
        registered_name: name in the model registry; None: the model is not registered.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment_id, name, source_run_id=run_id)
    model_id = logged.model_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = f"{temporary}/model"
        try:
            _export(network, input_shape, folder, run_id=run_id, model_id=model_id)
        # Any error: a user's network may do anything that torch.export cannot trace.
        except Exception as error:
            client.finalize_logged_model(model_id, "FAILED")
            logger.warning("%s cannot be exported and is not registered in MLflow: %s", name, error)
            return
        client.log_model_artifacts(model_id, folder)
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    if not registered_name:
        return
    # MLflow raises if the name exists already; the model then becomes its next version.
    with contextlib.suppress(MlflowException):
        client.create_registered_model(registered_name)
    client.create_model_version(
        registered_name, logged.artifact_location, run_id, await_creation_for=0, model_id=model_id
    )


def _export(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    folder: str,
    *,
    run_id: str,
    model_id: str,
) -> None:
    """Write an MLflow model folder that holds the traced graph of a copy of `network`."""
    import numpy as np
    import torch
    from mlflow import pytorch
    from mlflow.models import Model, ModelSignature
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
        folder,
        mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        signature=ModelSignature(inputs, outputs),
        input_example=example,
        pip_requirements=[requirement(package) for package in REQUIRED_PACKAGES],
        serialization_format="pt2",
    )
