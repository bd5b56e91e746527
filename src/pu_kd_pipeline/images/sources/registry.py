"""The types of image sources: which class reads each of them.

A new type takes three files: its module next to this one, an entry in `SOURCES` here, and an entry
in `SOURCE_TYPES` of `params/data_ingestion.py` with the key that it needs. Importing this module
fails while one of the entries is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.images.sources.base import Source
from pu_kd_pipeline.images.sources.demo import DemoSource
from pu_kd_pipeline.images.sources.file_list import ListSource
from pu_kd_pipeline.images.sources.folder import FolderSource
from pu_kd_pipeline.images.sources.parquet import ParquetSource
from pu_kd_pipeline.images.sources.torchvision import TorchvisionSource
from pu_kd_pipeline.images.sources.webdataset import WebDatasetSource
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES, ImageSource, SourceType

SOURCES: dict[str, type[Source]] = {
    "torchvision": TorchvisionSource,
    "folder": FolderSource,
    "parquet": ParquetSource,
    "list": ListSource,
    "webdataset": WebDatasetSource,
    "demo": DemoSource,
}


def check_source_types(sources: Mapping[str, Any], types: Mapping[str, SourceType]) -> None:
    """Check that every source type has a class, and parameters that can be given.

    The names are in two places because the parameters are a lower layer, which cannot import the
    classes.

    Raises:
        RuntimeError: names each part that is missing, and where it belongs.
    """
    faults = []
    for name, source_class in sources.items():
        if name not in types:
            faults.append(f"{name!r} has no entry in SOURCE_TYPES of params/data_ingestion.py")
        for method in ("state", "listing", "read", "why_not_shared"):
            if not hasattr(source_class, method):
                faults.append(f"{name!r} has a class without the method `{method}`")
        same_class = [other for other in sources if sources[other] is source_class]
        if same_class[0] != name:
            faults.append(f"{name!r} has the class of {same_class[0]!r}")
    for name, source_type in types.items():
        if name not in sources:
            faults.append(f"{name!r} has no class in SOURCES of images/sources/registry.py")
        key = source_type.required_key
        if key not in ImageSource.model_fields:
            faults.append(
                f"{name!r} needs the key {key!r}, which is not a field of ImageSource in "
                "params/data_ingestion.py"
            )
    if faults:
        raise RuntimeError(f"source type {'; source type '.join(faults)}: add what is missing")


check_source_types(SOURCES, SOURCE_TYPES)


def open_source(source: ImageSource, seed: int) -> Source:
    """Return the reader of a source; `seed` draws the split of the embedded demo."""
    return SOURCES[source.type](source, seed)


def source_state(source: ImageSource) -> str:
    """Return a digest that changes when the files of a source do, see `Source.state`."""
    return SOURCES[source.type].state(source)
