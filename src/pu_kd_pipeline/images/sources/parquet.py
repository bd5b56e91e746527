"""Images in a column of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources.base import SourceLostError, listing_table
from pu_kd_pipeline.images.sources.files import (
    file_system,
    lost_source_error,
    path_state,
    remote_version,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pu_kd_pipeline.params.data_ingestion import ImageSource


_READ_ROWS = 1_000
_READ_BYTES = (
    8 * 2**20
)  # read-ahead of a Parquet column, so that a row group is never held as a whole


class ParquetSource:
    """Parquet files with the columns `image` (bytes) and, where there are any, `id`, `label` and `label_name`.

    One file, a folder or a glob; local or any fsspec URL. `image` may be a struct with a field `bytes`, as Hugging Face
    writes it. Without ids an image is called by its file and row.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._path = str(source.path)
        self._fs, root = file_system(self._path)
        if self._fs.isdir(root):
            root = f"{root.rstrip('/')}/*.parquet"
        is_pattern = any(mark in root for mark in "*?[")
        found = self._fs.glob(root, detail=True) if is_pattern else {root: {}}
        self._files: list[str] = sorted(
            file for file, about in found.items() if about.get("type") != "directory"
        )
        if not self._files or not self._fs.exists(self._files[0]):
            raise InputError(
                f"there is no Parquet file at {self._path}: correct `path` of the source"
            )

    @staticmethod
    def state(source: ImageSource) -> str:
        return path_state(str(source.path))

    def listing(self) -> pd.DataFrame:
        tables = [self._list_file(number, file) for number, file in enumerate(self._files)]
        listing = pd.concat(tables, ignore_index=True)
        if listing.empty:
            raise InputError(f"{self._path} holds no image: it has no rows")
        return listing

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        for number in rows["file"].unique():
            try:
                with self._fs.open(self._files[number]) as opened:
                    rows_of_file = rows.loc[rows["file"] == number, "row"].to_numpy()
                    yield from self._read_file(self._open(opened), rows_of_file)
            except Exception as exc:  # a damaged file makes its reader raise nearly anything, and so does the network
                raise SourceLostError(
                    lost_source_error(self._files[number], f"{type(exc).__name__}: {exc}")
                ) from exc

    def _list_file(self, number: int, file: str) -> pd.DataFrame:
        with self._told_of(file), self._fs.open(file) as opened:
            parquet = self._open(opened)
            columns = set(parquet.schema_arrow.names)
            self._check_columns(parquet, file)
            about = self._fs.info(file)
            n_rows = parquet.metadata.num_rows
            if about.get("size") is not None and not 0 <= n_rows <= about["size"]:
                raise ValueError(f"it declares {n_rows:,} rows in {about['size']:,} bytes")
            known = parquet.read(
                [name for name in ("id", "label", "label_name") if name in columns]
            )
            if known.num_columns and known.num_rows != n_rows:
                raise ValueError(f"it declares {n_rows:,} rows and has {known.num_rows:,}")
            values = {name: _plain_values(known[name], name, file) for name in known.column_names}
        if "label" in values and any(isinstance(label, str) for label in values["label"]):
            values["label_name"] = values.pop("label")
        stem = PurePosixPath(file).stem
        ids = [
            f"{stem}:{row}" if value is None else str(value)
            for row, value in enumerate(values.get("id", [None] * n_rows))
        ]
        versions = [remote_version(about)] * n_rows
        return listing_table(
            ids,
            values.get("label"),
            values.get("label_name"),
            versions,
            file=np.full(n_rows, number),
            row=np.arange(n_rows),
        )

    @contextmanager
    def _told_of(self, file: str) -> Iterator[None]:
        """Turn whatever the reader of a damaged file raises into a sentence."""
        try:
            yield
        except InputError:
            raise
        except Exception as exc:
            raise InputError(
                f"{file} is not a Parquet file that can be read ({type(exc).__name__}: {exc}): correct `path`, or mend "
                "the file"
            ) from exc

    def _open(self, opened: Any) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        return pq.ParquetFile(opened, buffer_size=_READ_BYTES, pre_buffer=False)

    def _check_columns(self, parquet: pq.ParquetFile, file: str) -> None:
        import pyarrow as pa

        schema = parquet.schema_arrow
        if "image" not in schema.names:
            raise InputError(
                f"{file} has no column 'image'; found: {', '.join(schema.names) or 'none'}. A source of type 'parquet' "
                "needs image files' bytes in `image`, and may have `id`, `label` (int) and `label_name`: rename columns"
            )
        for name in ("image", "id", "label", "label_name"):
            if schema.names.count(name) > 1:
                raise InputError(f"{file} has more than one column {name!r}: rename all but one")
        kind = schema.field("image").type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise InputError(
                f"{file}: the column 'image' is {kind}; it must hold the bytes of image files (binary)"
            )

    def _read_file(self, parquet: pq.ParquetFile, rows: np.ndarray) -> Iterator[bytes | Unusable]:
        """Yield the images of ascending row numbers, touching only the row groups that hold some."""
        groups = [
            parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)
        ]
        starts = np.concatenate([[0], np.cumsum(groups)])
        n_read = 0
        for group in np.unique(np.searchsorted(starts, rows, side="right") - 1):
            start = starts[group]
            for batch in parquet.iter_batches(
                _READ_ROWS, row_groups=[int(group)], columns=["image"]
            ):
                first, last = np.searchsorted(rows, [start, start + batch.num_rows])
                for value in batch.column(0).take(rows[first:last] - start).to_pylist():
                    image = value.get("bytes") if isinstance(value, dict) else value
                    yield Unusable(Reason.EMPTY) if image is None else image
                n_read += last - first
                start += batch.num_rows
        if n_read != len(rows):
            raise ValueError(f"of {len(rows):,} rows {n_read:,} are there")


def _plain_values(column: pa.ChunkedArray, name: str, file: str) -> list[Any]:
    """Return a column of ids, labels or names as integers or strings; floats that are whole become integers.

    Raises:
        InputError: it holds something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_floating(kind) and name == "label":
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    is_number = pa.types.is_integer(kind) or (
        name == "label"
        and (pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind))
    )
    is_text = (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
    if not (is_number or is_text or pa.types.is_null(kind)):
        raise InputError(
            f"{file}: the column {name!r} is {kind}; it must hold text or whole numbers"
        )
    try:
        values: list[Any] = (column.cast(pa.int64()) if is_number else column).to_pylist()
    except pa.ArrowInvalid as exc:
        raise InputError(
            f"{file}: the column {name!r} holds more than whole numbers of 64 bits ({exc})"
        ) from exc
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{file}: the column {name!r} holds text that is not UTF-8 ({exc}): mend it"
        ) from exc
    return values
