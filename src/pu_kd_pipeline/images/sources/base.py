"""What every image source answers, and the tables that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Unusable
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage
    from pu_kd_pipeline.params.data_ingestion import ImageSource


class SourceLostError(InputError):
    """A source was there when the run began and cannot be read any more; what is finished is worth keeping."""


class Source(Protocol):
    """A place that images come from.

    Args:
        source: its parameters.
        seed: draws the split of the embedded demo; other sources ignore it.
    """

    def __init__(self, source: ImageSource, seed: int) -> None: ...

    @staticmethod
    def state(source: ImageSource) -> str:
        """Return a digest of what the files of a source are called and when they changed.

        The source is not opened and no image is read, and it need not be there. Empty: there are no files, because
        the images come with installed code. What a remote file system raises is part of the digest, not an error.
        """
        ...

    def listing(self) -> pd.DataFrame:
        """Return one row an image, in a stable order.

        Columns: `id` (string, unique), `label` (Int64 or null), `label_name` (string or null), `version` (string,
        changes whenever the image may have), `fault` (the reason why it cannot be used, or null) and the source's own.

        Raises:
            InputError: the source is not there, is empty, or is not what it should be.
        """
        ...

    def read(self, rows: pd.DataFrame) -> Iterator[RawImage | Unusable]:
        """Yield the raw image of each of these rows of the listing, which are in the listing's order.

        Raises:
            SourceLostError: the source as a whole is no longer there, or is damaged.
        """
        ...


def default_name(source: ImageSource) -> str:
    """Return what the index calls a source that was given no name."""
    if SOURCE_TYPES[source.type].required_key not in ("dataset", "path"):
        return source.type
    path = PurePosixPath(str(source.path).rstrip("/"))
    is_pattern = any(wildcard in path.name for wildcard in "*?[")
    return source.dataset or (path.parent.name if is_pattern else path.stem) or source.type


def listing_table(
    ids: Any,
    labels: Any = None,
    label_names: Any = None,
    versions: Any = None,
    faults: Any = None,
    **locators: Any,
) -> pd.DataFrame:
    n = len(ids)
    return pd.DataFrame(
        {
            "id": pd.Series(ids, dtype="str"),
            "label": pd.Series([None] * n if labels is None else labels, dtype="Int64"),
            "label_name": pd.Series(
                [None] * n if label_names is None else label_names, dtype="str"
            ),
            "version": pd.Series(versions if versions is not None else [""] * n, dtype="str"),
            "fault": pd.Series([None] * n if faults is None else faults, dtype="str"),
            **locators,
        }
    )
