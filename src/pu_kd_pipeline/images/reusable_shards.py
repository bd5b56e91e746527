"""Which shards of an earlier run can be kept.

The index of a shard is self-contained: its metadata hold the specification that the shard was made
by, so that a shard which was finished before an interruption is found and kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.images.listing import IDENTITY_COLUMNS
from pu_kd_pipeline.images.row_checksums import RowChecksums
from pu_kd_pipeline.images.shard_files import (
    INDEX_SUFFIX,
    index_to_pandas,
    is_shard_name,
    open_encoded,
    open_packed,
    pixel_file,
    read_index_table,
)
from pu_kd_pipeline.images.store_file import Specification
from pu_kd_pipeline.storage.folders import Folder, existing_files, file_names
from pu_kd_pipeline.storage.parquet_files import write_parquet

_METADATA_KEY = b"specification"


def write_index(file: Path, shard_name: str, table: pa.Table, specification: Specification) -> None:
    """Write the index of a shard, and what the shard was made by."""
    described = table.replace_schema_metadata({_METADATA_KEY: _encode(specification)})
    write_parquet(described, file, shard_name)


def reusable_shards(
    folder: Folder, specification: Specification, wanted: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Return the indexes of the shards that are whole, of this specification, and all wanted."""
    wanted_hashes = _identity_hashes(wanted)
    kept: dict[str, pd.DataFrame] = {}
    taken_ids: set[str] = set()

    index_files = file_names(folder, INDEX_SUFFIX)
    names = [file.removesuffix(INDEX_SUFFIX) for file in index_files]
    pixel_files = [pixel_file(name, specification.kind) for name in names]
    existing = existing_files(folder, pixel_files)
    for name, pixels in zip(names, pixel_files, strict=True):
        if pixels not in existing:
            continue
        index = _read_index(folder, name, specification)
        if index is None:
            continue

        is_wanted = _identity_hashes(index).isin(wanted_hashes)
        # An interrupted run can leave two shards that hold the same image: the first one is kept.
        if is_wanted.all() and taken_ids.isdisjoint(index["id"]):
            kept[name] = index
            taken_ids.update(index["id"])

    return kept


def _identity_hashes(table: pd.DataFrame) -> pd.Index:
    """Return one hash per image of all that must be unchanged for a stored image to be right."""
    identity = table[IDENTITY_COLUMNS].astype("str")
    identity = identity.fillna("")
    hashes = pd.util.hash_pandas_object(identity, index=False)
    return pd.Index(hashes)


def _read_index(folder: Folder, name: str, specification: Specification) -> pd.DataFrame | None:
    """Return the index of a shard, or None if the shard is damaged or of another specification."""
    if not is_shard_name(name):
        return None
    try:
        table = read_index_table(folder, name)
        metadata = table.schema.metadata or {}
        if metadata.get(_METADATA_KEY) == _encode(specification):
            _verify_images(folder, name, specification, table)
            return index_to_pandas(table)
    except UnavailableError:
        raise
    except InputError:
        return None
    return None


def _verify_images(
    folder: Folder, name: str, specification: Specification, index: pa.Table
) -> None:
    """Verify every image of a shard, which reads the whole file but decodes nothing.

    On an object store they are verified when they are read: this would download the store.

    Raises:
        InputError: one is damaged.
    """
    if not isinstance(folder, Path):
        return
    n_images = index.num_rows
    path = folder / pixel_file(name, specification.kind)
    file = str(path)
    checksums = RowChecksums(index["checksum"].to_numpy(), file)
    if specification.kind == "packed":
        size_px = specification.size_px
        shape = (n_images, specification.channels, size_px, size_px)
        pixels = open_packed(path, shape, file)
        checksums.verify(np.arange(n_images), pixels)
    else:
        encoded = open_encoded(path, n_images, file)
        for row in range(n_images):
            image: bytes = encoded[row].as_py()
            checksums.verify(np.array([row]), [image])


def _encode(specification: Specification) -> bytes:
    fields = asdict(specification)
    text = json.dumps(fields, sort_keys=True)
    return text.encode()
