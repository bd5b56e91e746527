"""The folders of a run, and how tests read its manifest and scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pu_kd_pipeline.storage.sharded_table import ShardedTable

# Layers of the data folder, as conf/base/catalog names them.
IMAGES = "02_intermediate"
FEATURES = "04_feature"
MODEL_INPUT = "05_model_input"
MODELS = "06_models"
MODEL_OUTPUT = "07_model_output"
REPORTING = "08_reporting"


def pool_scores(run: Path) -> pd.DataFrame:
    """Return the score of every pool image."""
    table = ShardedTable.open(run / MODEL_OUTPUT / "pool_scores")
    return table.to_pandas()


def selected_from_pool(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a manifest without those of the labeled images."""
    is_from_pool = manifest["origin"] == "pool"
    return manifest[is_from_pool]
