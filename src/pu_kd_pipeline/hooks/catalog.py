"""Names and places of catalog entries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedro.io import DataCatalog


METRICS, STUDENT, REPORT = "metrics", "student_model", "report"


def dataset_path(catalog: DataCatalog, name: str) -> Path | None:
    """Return where a catalog entry is kept; None for what lives in memory."""
    dataset = catalog.get(name) if name in catalog else None
    path = getattr(dataset, "filepath", None) or getattr(dataset, "_filepath", None)
    return None if path is None else Path(path)
