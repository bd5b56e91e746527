"""The files of one shard: their names, their schema, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.folders import Folder, read_file, shown

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RUN_AGAIN = "run `kedro run --pipeline=data_ingestion`"


INDEX_SUFFIX = ".index.parquet"
PIXEL_SUFFIXES = {"packed": ".npy", "encoded": ".images.arrow"}
_SHARD_NAME = re.compile(r"[0-9]{5,9}-[0-9a-f]{12}")


def pixel_file(shard_name: str, kind: str) -> str:
    """Return the name of the file that holds the images of a shard."""
    return f"{shard_name}{PIXEL_SUFFIXES[kind]}"


def index_file(shard_name: str) -> str:
    """Return the name of the index of a shard."""
    return f"{shard_name}{INDEX_SUFFIX}"


def is_shard_name(name: str) -> bool:
    """Return whether a shard of a store can have a name: a number, and a hash of its content."""
    return _SHARD_NAME.fullmatch(name) is not None


def is_shard_file(file_name: str) -> bool:
    """Return whether a file is named like one of a shard of a store."""
    for suffix in (*PIXEL_SUFFIXES.values(), INDEX_SUFFIX):
        if file_name.endswith(suffix):
            return is_shard_name(file_name.removesuffix(suffix))
    return False


def index_schema() -> pa.Schema:
    """Return the columns of a shard's index.

    A changed `version` means that the image at the source may have changed. `checksum` is that of
    the image's bytes in the shard, `sha256` that of its pixels.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("source", pa.string()),
            ("label", pa.int32()),
            ("relevant", pa.bool_()),
            ("sha256", pa.string()),
            ("status", pa.string()),
            ("version", pa.string()),
            ("row", pa.int64()),
            ("checksum", pa.uint32()),
        ]
    )


def read_index_table(
    folder: Folder, shard_name: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return columns of the index of a shard; None: all.

    Raises:
        InputError: the file is damaged, or is not an index.
    """
    from pu_kd_pipeline.storage.parquet_files import read_parquet

    def read(path: Path) -> pa.Table:
        table = read_parquet(path, shard_name, columns=columns)
        schema = index_schema()
        expected = [schema.field(name) for name in columns or schema.names]
        if list(table.schema) != expected:
            raise ValueError("it has other columns than an index")
        return table

    name = index_file(shard_name)
    file = shown(folder, name)
    try:
        return read_file(folder, name, read)
    except InputError:  # of an object store, which is no damage
        raise
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{file} is damaged ({type(exc).__name__}: {exc}): delete it and {RUN_AGAIN}"
        ) from exc


def index_to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return an index as a data frame, with null labels as nulls instead of floats."""
    import pandas as pd
    import pyarrow as pa

    dtypes = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=dtypes.get)


def open_packed(path: Path, shape: tuple[int, ...], file: str) -> np.ndarray:
    """Return the memory-mapped (N, C, H, W) uint8 pixels of a packed shard.

    Args:
        path: of the file.
        shape: (N, C, H, W).
        file: its path or address for messages.

    Raises:
        InputError: the file is not an array of that shape, such as one that was cut short.
    """
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as exc:
        # The header of an array is a Python literal, which can be wrong in many ways.
        raise InputError(f"{file} is damaged ({exc}): delete it and {RUN_AGAIN}") from exc
    if not isinstance(pixels, np.ndarray):  # an archive of arrays
        raise InputError(f"{file} is not an array of pixels: delete it and {RUN_AGAIN}")
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise InputError(
            f"{file} holds {pixels.dtype} {pixels.shape}, its store says uint8 {shape}: "
            f"delete it and {RUN_AGAIN}"
        )
    # np.memmap's own indexing costs more than the read.
    return pixels.view(np.ndarray)


def open_encoded(path: Path, n_images: int, file: str) -> pa.ChunkedArray:
    """Return the memory-mapped bytes of the `n_images` images of an encoded shard.

    Args:
        path: of the file.
        n_images: that it holds.
        file: its path or address for messages.

    Raises:
        InputError: the file is damaged.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        images = table["image"]
        if images.type != pa.large_binary():
            raise ValueError(f"its images are {images.type}")
        if len(images) != n_images:
            raise ValueError(f"it holds {len(images):,} of {n_images:,} images")
        images.validate(full=True)  # without it, an offset beyond the end would be read
        return images
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(f"{file} is damaged ({exc}): delete it and {RUN_AGAIN}") from exc
