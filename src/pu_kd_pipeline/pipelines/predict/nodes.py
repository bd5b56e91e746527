"""The node of the stage `predict`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.predict import PredictParams


def predict_images(student: Model, exported: Path | None, params: PredictParams) -> pd.DataFrame:
    """Return one row for each image file: its class, or why it cannot be read."""
    from pu_kd_pipeline.prediction import predict_files

    return predict_files(student, exported, params)
