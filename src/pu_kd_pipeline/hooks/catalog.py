"""Facts about catalog entries that hooks need."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io.core import DatasetError

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from kedro.io import DataCatalog

METRICS = "metrics"
REPORT = "report"
# What `metadata: {mlflow: ...}` of a catalog entry may be.
TRACKING_KINDS = ("dataset", "metrics", "model", "certificate", "cells", "note", "file", "image")


def dataset_path(catalog: DataCatalog, name: str) -> Path | None:
    """Return the file or folder of a catalog entry; None for data in memory or elsewhere."""
    if name not in catalog:
        return None
    dataset: Any = catalog.get(name)
    if is_remote(dataset):
        return None
    # The file of the last version, of an entry with `versioned: true`.
    if getattr(dataset, "_version", None) is not None:
        with suppress(DatasetError):
            return Path(dataset._get_load_path())
    # Our own datasets and Kedro's name the attribute differently.
    path = getattr(dataset, "filepath", None) or getattr(dataset, "_filepath", None)
    if path is None:
        return None
    return Path(path)


def dataset_location(catalog: DataCatalog, name: str) -> str | None:
    """Return the path or address of a catalog entry for the user; None for data in memory."""
    path = dataset_path(catalog, name)
    if path is not None:
        return str(path)
    if name not in catalog:
        return None
    dataset: Any = catalog.get(name)
    if not is_remote(dataset):
        return None
    path_in_store = str(dataset._filepath).lstrip("/")
    return f"{dataset._protocol}://{path_in_store}"


def is_remote(dataset: Any) -> bool:
    """Return whether a dataset is a file on another machine, such as an object store."""
    return getattr(dataset, "_protocol", "file") != "file"


def tracked_as(catalog: DataCatalog, name: str) -> str | None:
    """Return how MLflow gets an entry, one of `TRACKING_KINDS`; None: it does not.

    Raises:
        InputError: the metadata asks for something else.
    """
    if name not in catalog:
        return None
    metadata: Any = getattr(catalog.get(name), "metadata", None)
    if not isinstance(metadata, dict):
        return None
    kind = metadata.get("mlflow")
    # An environment removes a value of base with null.
    if kind is None:
        return None
    if kind not in TRACKING_KINDS:
        raise InputError(
            f"catalog entry `{name}`: metadata.mlflow is {kind!r}, expected one of "
            f"{', '.join(TRACKING_KINDS)}"
        )
    return str(kind)
