"""The source of a parameter block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pu_kd_pipeline.images.sources.base import Source
from pu_kd_pipeline.images.sources.demo import DemoSource
from pu_kd_pipeline.images.sources.folder import FolderSource
from pu_kd_pipeline.images.sources.parquet import ParquetSource
from pu_kd_pipeline.images.sources.torchvision import TorchvisionSource

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource


def open_source(source: ImageSource, seed: int) -> Source:
    """Return the reader of a source; `seed` draws the split of the embedded demo."""
    if source.type == "demo":
        return DemoSource(str(source.part), seed)
    kinds: dict[str, Callable[[ImageSource], Source]] = {
        "torchvision": TorchvisionSource,
        "folder": FolderSource,
        "parquet": ParquetSource,
    }
    return kinds[source.type](source)
