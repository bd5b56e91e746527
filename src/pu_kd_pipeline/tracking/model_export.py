"""Classifiers as MLflow model folders: exported graphs that take pixels, never pickles.

A folder is loaded where MLflow and torch are installed, and this project is not.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pu_kd_pipeline.images.batches import normalization
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.tracking.config import ENVIRONMENT
from pu_kd_pipeline.tracking.model_description import FINGERPRINT, model_metadata
from pu_kd_pipeline.tracking.run_metadata import requirement

if TYPE_CHECKING:
    from pu_kd_pipeline.learning.augmentation import Normalize

REQUIRED_PACKAGES = ("torch", "numpy", "pandas", "mlflow")
# The file that MLflow imports to predict, and the name of its copies.
PREDICTING_CODE = Path(__file__).with_name("image_classifier.py")
LARGEST_PIXEL = 255
# With a batch of one, the export would fix the batch size to one.
N_EXAMPLES = 2
EXPECTED_PIXELS = (
    "pixels have to be float32 in [0, 1] and in RGB order or gray: divide 8-bit pixels by 255, and "
    "do not normalize them, because the model does"
)


class PixelClassifier(nn.Module):
    """A network with the normalization of its input.

    Args:
        network: maps normalized images to (N, K) logits.
        normalize: maps (N, C, H, W) pixels in [0, 255] to normalized images.
    """

    def __init__(self, network: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.network = network
        self.normalize = normalize

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 pixels in [0, 1] to (N, K) float32 logits.

        Raises:
            RuntimeError: a pixel is outside of [0, 1], or of another type.
        """
        is_in_range = (pixels >= 0) & (pixels <= 1)
        # Of the functions for checks, only this one keeps its message in an exported graph.
        torch._assert_async(is_in_range.all(), EXPECTED_PIXELS)
        # This is no conversion: the exported graph refuses every other type here.
        float_pixels = pixels.to(torch.float32)
        images = self.normalize(float_pixels * LARGEST_PIXEL)
        logits: Tensor = self.network(images)
        return logits


def export_model(model: Model, examples: np.ndarray | None, folder: Path) -> None:
    """Write an MLflow model folder that holds the traced graph of a copy of a classifier.

    It is computed in the run; nothing is sent anywhere.

    Args:
        model: on any device; it is left unchanged.
        examples: (2, C, H, W) uint8 images that become the input example, and are readable for
            everybody who gets the model; None: a pattern.
        folder: created.
    """
    # Read when MLflow is imported: it sends telemetry otherwise.
    for name in ("MLFLOW_DISABLE_TELEMETRY",):
        os.environ.setdefault(name, ENVIRONMENT[name])
    from mlflow import pyfunc, pytorch
    from mlflow.models import Model as Description

    network = copy.deepcopy(model.network).cpu().float().eval()
    classifier = PixelClassifier(network, normalization(model, torch.device("cpu"))).eval()
    if examples is None:
        examples = pattern(model.image_shape)
    pixels = examples.astype(np.float32) / LARGEST_PIXEL

    description = Description()
    with tempfile.TemporaryDirectory() as code_folder:
        # The content is a part of the name: a process may load models with different code.
        digest = hashlib.sha256(PREDICTING_CODE.read_bytes()).hexdigest()
        module = f"{PREDICTING_CODE.stem}_{digest[:8]}"
        code = shutil.copyfile(PREDICTING_CODE, Path(code_folder) / f"{module}.py")
        pytorch.save_model(
            classifier,
            str(folder),
            mlflow_model=description,
            code_paths=[str(code)],
            signature=_signature(model),
            input_example=pixels,
            metadata={**model_metadata(model.card), FINGERPRINT: model.fingerprint()},
            pip_requirements=[requirement(package) for package in REQUIRED_PACKAGES],
            serialization_format="pt2",
        )
    # In place of MLflow's own predictions, which know no classes.
    pyfunc.add_to_model(
        description,
        loader_module=module,
        data="data",
        code="code",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"classes": list(model.card.classes)},
    )
    description.save(str(folder / "MLmodel"))


def pattern(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return (2, C, H, W) uint8 images: a gradient from dark to bright, and its mirror image."""
    size_px = image_shape[-1]
    row = np.linspace(0, LARGEST_PIXEL, size_px).astype(np.uint8)
    image = np.broadcast_to(row, image_shape)
    return np.stack([image, image[..., ::-1]])


def _signature(model: Model) -> object:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    float32 = np.dtype(np.float32)
    inputs = Schema([TensorSpec(float32, (-1, *model.image_shape))])
    outputs = Schema([ColSpec(DataType.float, name) for name in model.card.classes])
    params = ParamSchema([ParamSpec("output", DataType.string, "probabilities")])
    return ModelSignature(inputs, outputs, params)
