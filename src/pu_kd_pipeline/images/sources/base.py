"""What every image source provides, and the table that lists its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from pu_kd_pipeline.errors import UnavailableError
from pu_kd_pipeline.images.decoding import Unusable
from pu_kd_pipeline.masking import MASK, without_credentials
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage
    from pu_kd_pipeline.params.data_ingestion import ImageSource


CONFLICTING_LABELS = "conflicting labels"  # the fault is "conflicting labels: <label> and <label>"
PASSED_OVER = "passed_over"  # in the `attrs` of a listing: reason -> number of files


class SourceLostError(UnavailableError):
    """A source can no longer be read in the middle of a run; what is finished is worth keeping."""


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

        They are the files that `listing` lists, or lists if they turn out to be images, with the
        same versions, so that whatever is read again changes the state. No file is opened, and none
        need exist. Empty if there are no files because the images come with installed code. Errors
        become part of the digest and are not raised.
        """
        ...

    def listing(self) -> pd.DataFrame:
        """Return one row per image, in a stable order.

        Columns: `id` (string, unique), `label` (Int64 or null), `label_name` (string or null),
        `version` (string, changes whenever the image may have), `fault` (the reason why it cannot
        be used, or null) and the source's own.

        Raises:
            InputError: the source is missing, empty, or of the wrong kind.
        """
        ...

    def read(self, rows: pd.DataFrame) -> Iterator[RawImage | Unusable]:
        """Yield the raw image of each of these rows of the listing, which are in its order.

        Raises:
            SourceLostError: the source as a whole is gone or damaged.
        """
        ...

    def why_not_shared(self, n_images: int) -> str | None:
        """Return why other processes should not read parts of this source, or None: they may.

        They may if `read` works on a pickled copy, and does not read all images in front of those
        that are asked for. It is asked after `listing`.

        Args:
            n_images: in each part.
        """
        ...


def default_name(source: ImageSource) -> str:
    """Return the name of a source in the index if its parameters give none."""
    # A type that needs neither is named after itself, whatever other keys it was given.
    required_key = SOURCE_TYPES[source.type].required_key
    if required_key not in ("dataset", "path"):
        return source.type
    if source.dataset:
        return source.dataset

    path = PurePosixPath(_address(str(source.path)))
    # A pattern such as `*.parquet` says nothing: its folder has the name.
    if not _has_wildcard(path.name):
        return path.stem or source.type
    for folder in path.parents:
        if not _has_wildcard(folder.name):
            return folder.name or source.type
    return source.type


def _address(path: str) -> str:
    """Return a path or URL without credentials and query, as a name may be made of it."""
    address = without_credentials(path).replace(f"{MASK}@", "")
    if address.startswith(("http://", "https://")):
        # elsewhere, a question mark is a wildcard
        address, _, _ = address.partition("?")
    return address.rstrip("/")


def _has_wildcard(name: str) -> bool:
    return any(wildcard in name for wildcard in "*?[")


def listing_table(
    ids: Sequence[str],
    labels: Any = None,
    label_names: Any = None,
    versions: Any = None,
    faults: Any = None,
    **locators: Any,
) -> pd.DataFrame:
    """Return the table that `Source.listing` describes; columns that are not given are empty.

    Args:
        ids: one per image.
        labels: class numbers, or None for an image without.
        label_names: class names, or None for an image without.
        versions: texts that change whenever an image may have.
        faults: why an image cannot be used, or None.
        locators: columns by which the source finds an image again.
    """
    nothing = [None] * len(ids)
    if labels is None:
        labels = nothing
    if label_names is None:
        label_names = nothing
    if versions is None:
        versions = [""] * len(ids)
    if faults is None:
        faults = nothing
    # Stated dtypes, so that sources with and without a column can be put together.
    columns = {
        "id": pd.Series(ids, dtype="str"),
        "label": pd.Series(labels, dtype="Int64"),
        "label_name": pd.Series(label_names, dtype="str"),
        "version": pd.Series(versions, dtype="str"),
        "fault": pd.Series(faults, dtype="str"),
    }
    return pd.DataFrame({**columns, **locators})
