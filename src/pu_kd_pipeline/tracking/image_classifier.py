"""Predicts with an exported image classifier; a copy of this file is stored with each model.

MLflow imports the copy when it loads the model, so nothing of this project is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch

PROBABILITIES = "probabilities"
LOGITS = "logits"
CLASSES = "classes"
OUTPUTS = (PROBABILITIES, LOGITS, CLASSES)


class ImageClassifier:
    """A network that takes pixels, with the names of its classes.

    Args:
        network: maps (N, C, H, W) float32 pixels in [0, 1] to (N, K) float32 logits.
        classes: K names.
    """

    def __init__(self, network: torch.nn.Module, classes: list[str]) -> None:
        self.network = network
        self.classes = classes

    def predict(self, images: np.ndarray, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return one row for each image.

        Args:
            images: (N, C, H, W) float32 pixels in [0, 1].
            params: `output`, one of `probabilities` (a column for each class, the default),
                `logits` (as well), or `classes` (the columns `class` and `probability`).

        Raises:
            ValueError: there is no such output.
            RuntimeError: a pixel is outside of [0, 1].
        """
        output = (params or {}).get("output", PROBABILITIES)
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}, expected one of {', '.join(OUTPUTS)}")
        # Arrays that share memory with a file or a request may be read-only.
        pixels = torch.from_numpy(np.array(images, dtype=np.float32))
        with torch.inference_mode():
            logits = self.network(pixels)
        if output == LOGITS:
            return pd.DataFrame(logits.numpy(), columns=self.classes)
        probabilities = torch.softmax(logits, dim=1).numpy()
        if output == PROBABILITIES:
            return pd.DataFrame(probabilities, columns=self.classes)
        best = probabilities.argmax(axis=1)
        names = [self.classes[index] for index in best]
        return pd.DataFrame({"class": names, "probability": probabilities.max(axis=1)})


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any]) -> ImageClassifier:
    """Return the classifier of a model folder, as MLflow asks for it."""
    folder = Path(data_path).parent
    network = mlflow.pytorch.load_model(str(folder))
    return ImageClassifier(network, list(model_config[CLASSES]))
