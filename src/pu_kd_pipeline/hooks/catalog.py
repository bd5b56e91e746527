"""Facts about catalog entries that hooks need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedro.io import DataCatalog

METRICS = "metrics"
REPORT = "report"


def dataset_path(catalog: DataCatalog, name: str) -> Path | None:
    """Return the file or folder of a catalog entry; None for data in memory."""
    if name not in catalog:
        return None
    dataset = catalog.get(name)
    # Our own datasets and Kedro's name the attribute differently.
    path = getattr(dataset, "filepath", None) or getattr(dataset, "_filepath", None)
    if path is None:
        return None
    return Path(path)


def tracked_as(catalog: DataCatalog, name: str) -> str | None:
    """Return how MLflow gets an entry, the `mlflow` of its metadata; None: it does not."""
    if name not in catalog:
        return None
    metadata: Any = getattr(catalog.get(name), "metadata", None)
    if not isinstance(metadata, dict):
        return None
    return metadata.get("mlflow")
