"""The files of one shard: their names, their schema, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RUN_AGAIN = "run `kedro run --pipeline=data_ingestion`"


def pixel_file(folder: Path, shard_name: str, kind: str) -> Path:
    """Return the path of the file that holds the images of a shard."""
    if kind == "packed":
        return folder / f"{shard_name}.npy"
    return folder / f"{shard_name}.images.arrow"


def index_file(folder: Path, shard_name: str) -> Path:
    """Return the path of the index of a shard."""
    return folder / f"{shard_name}.index.parquet"


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
    folder: Path, shard_name: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return columns of the index of a shard; None: all.

    Raises:
        InputError: the file is damaged, or is not an index.
    """
    from pu_kd_pipeline.storage.parquet_files import read_parquet

    file = index_file(folder, shard_name)
    try:
        table = read_parquet(file, shard_name, columns=columns)
        schema = index_schema()
        expected = [schema.field(name) for name in columns or schema.names]
        if list(table.schema) != expected:
            raise ValueError("it has other columns than an index")
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{file} is damaged ({type(exc).__name__}: {exc}): delete it and {RUN_AGAIN}"
        ) from exc
    return table


def index_to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return an index as a data frame, with null labels as nulls instead of floats."""
    import pandas as pd
    import pyarrow as pa

    dtypes = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=dtypes.get)


def open_packed(folder: Path, shard_name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the memory-mapped (N, C, H, W) uint8 pixels of a packed shard.

    Raises:
        InputError: the file is not an array of that shape, such as one that was cut short.
    """
    file = pixel_file(folder, shard_name, "packed")
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
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


def open_encoded(folder: Path, shard_name: str, n_images: int) -> pa.ChunkedArray:
    """Return the memory-mapped bytes of the `n_images` images of an encoded shard.

    Raises:
        InputError: the file is damaged.
    """
    import pyarrow as pa

    file = pixel_file(folder, shard_name, "encoded")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        images = table["image"]
        if images.type != pa.large_binary():
            raise ValueError(f"its images are {images.type}")
        if len(images) != n_images:
            raise ValueError(f"it holds {len(images):,} of {n_images:,} images")
        images.validate(full=True)  # without it, an offset beyond the end would be read
        return images
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(f"{file} is damaged ({exc}): delete it and {RUN_AGAIN}") from exc
