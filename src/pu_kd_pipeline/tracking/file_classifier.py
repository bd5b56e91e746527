"""Predicts from the bytes of image files; a copy of this file is stored with each served model.

MLflow imports the copy when it loads the model, so nothing of this project is imported here: the
modules that predict and decode are copies as well, and `model_config` has their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import mlflow
import numpy as np
import pandas as pd

IMAGE = "image"  # the column
LARGEST_PIXEL = 255


class FileClassifier:
    """A classifier of image files.

    Args:
        classifier: predicts from (N, C, H, W) float32 pixels in [0, 1].
        decoder: turns the bytes of a file into (C, H, W) uint8 pixels, or says why it cannot.
    """

    def __init__(self, classifier: Any, decoder: Any) -> None:
        self.classifier = classifier
        self.decoder = decoder

    def predict(self, files: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return one row for each file.

        Args:
            files: the column `image` holds the bytes of JPEG, PNG or other image files.
            params: those of the classifier.

        Raises:
            MlflowException: a file cannot be used; the server answers with status 400.
        """
        images = []
        for row, content in enumerate(files[IMAGE]):
            pixels = self.decoder.decode(bytes(content))
            if not isinstance(pixels, np.ndarray):
                raise mlflow.MlflowException.invalid_parameter_value(
                    f"image {row}: {pixels.reason.value}; the bytes of an image file such as JPEG "
                    "or PNG are expected, encoded in base64 in a request"
                )
            images.append(pixels)
        if not images:
            raise mlflow.MlflowException.invalid_parameter_value("there is no image")
        batch = np.stack(images).astype(np.float32) / LARGEST_PIXEL
        table: pd.DataFrame = self.classifier.predict(batch, params)
        return table


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any]) -> FileClassifier:
    """Return the classifier of a model folder, as MLflow asks for it."""
    predicting = import_module(model_config["predicting_module"])
    decoding = import_module(f"{model_config['decoding_package']}.decoding")
    classifier = predicting._load_pyfunc(data_path, model_config)
    return FileClassifier(classifier, decoding.Decoder(**model_config["decoder"]))
