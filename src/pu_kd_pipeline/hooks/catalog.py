"""Facts about catalog entries that hooks need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from kedro.io import DataCatalog

METRICS = "metrics"
REPORT = "report"
# What `metadata: {mlflow: ...}` of a catalog entry may be.
TRACKING_KINDS = ("dataset", "metrics", "model", "file", "image")


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
    """Return how MLflow gets an entry, one of `TRACKING_KINDS`; None: it does not.

    Raises:
        InputError: the metadata asks for something else.
    """
    if name not in catalog:
        return None
    metadata: Any = getattr(catalog.get(name), "metadata", None)
    if not isinstance(metadata, dict) or "mlflow" not in metadata:
        return None
    kind = metadata["mlflow"]
    if kind not in TRACKING_KINDS:
        raise InputError(
            f"catalog entry `{name}`: metadata.mlflow is {kind!r}, expected one of "
            f"{', '.join(TRACKING_KINDS)}"
        )
    return str(kind)
