"""The images in a column of a Parquet file, read in batches of limited size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources.files import MAX_FILE_BYTES

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_READ_ROWS = 256
_BATCH_BYTES = 2**26
# Images are compressed already. A column that shrinks by so much holds none.
_MAX_RATIO = 50
_HEADER_BYTES = 32  # enough for the first two numbers in the header of a page


def holds_only_paths(parquet: pq.ParquetFile, column: str) -> bool:
    """Return whether the statistics of a file show that its images have paths and no bytes.

    Hugging Face's libraries write such files where images are not embedded. Nothing is read. False
    if the file has no rows or no statistics.
    """
    about = parquet.metadata
    paths = _leaves(parquet, column, "path")
    contents = _leaves(parquet, column, "bytes")
    if not paths or not contents or not about.num_rows:
        return False
    has_path = False
    for group in range(about.num_row_groups):
        if not _is_null(about.row_group(group).column(contents[0])):
            return False
        if not _is_null(about.row_group(group).column(paths[0])):
            has_path = True
    return has_path


def _is_null(chunk: pq.ColumnChunkMetaData) -> bool:
    """Return whether statistics show that all values of a part of a column are null."""
    found = chunk.statistics
    if found is None or not found.has_null_count:
        return False
    return bool(found.null_count >= chunk.num_values)


def read_images(
    parquet: pq.ParquetFile, opened: Any, column: str, rows: np.ndarray
) -> Iterator[bytes | Unusable]:
    """Yield the images in some rows, reading only the row groups that hold them.

    Args:
        parquet: the open file.
        opened: the file that it reads.
        column: name of the column.
        rows: ascending row numbers.

    Raises:
        ValueError: the file has fewer rows than it had when it was listed.
    """
    starts = [0]  # row number of each group's first row, and the number of all rows
    for group in range(parquet.num_row_groups):
        about = parquet.metadata.row_group(group)
        next_start = starts[-1] + about.num_rows
        starts.append(next_start)
    groups = np.searchsorted(starts, rows, side="right") - 1

    leaves = _leaves(parquet, column, "bytes") or _leaves(parquet, column, "")
    n_read = 0
    for group in np.unique(groups):
        start = starts[group]  # and then of each of its batches
        n_rows_at_a_time = _rows_at_a_time(parquet, opened, leaves[0], int(group))
        if n_rows_at_a_time == 0:
            n_set_aside = int((groups == group).sum())
            n_read += n_set_aside
            for _ in range(n_set_aside):
                yield Unusable(Reason.TOO_LARGE)
            continue
        batches = parquet.iter_batches(
            n_rows_at_a_time, row_groups=[int(group)], columns=[column], use_threads=False
        )
        for batch in batches:
            stop = start + batch.num_rows
            # The rows are ascending, so those of the batch are neighbors.
            first, last = np.searchsorted(rows, [start, stop])
            images = batch.column(0)
            # One at a time: a dictionary may hold an image once for many rows.
            for row in rows[first:last] - start:
                yield _image_bytes(images[int(row)].as_py())
            n_read += last - first
            start = stop
            if last == len(rows):
                break  # none of the rows is further behind

    if n_read != len(rows):
        raise ValueError(f"of {len(rows):,} rows {n_read:,} are there")


def _rows_at_a_time(parquet: pq.ParquetFile, opened: Any, leaf: int, group: int) -> int:
    """Return how many rows of a row group fit into a batch; 0: it is too large to be read.

    The sizes are those that the file declares. Nothing but the header of a page is read.
    """
    about = parquet.metadata.row_group(group)
    chunk = about.column(leaf)
    n_bytes = max(0, chunk.total_uncompressed_size)
    largest = n_bytes // max(1, about.num_rows)
    if largest > MAX_FILE_BYTES:
        return 0
    # Large pages alone are no fault: pyarrow writes a thousand images into one.
    if n_bytes > MAX_FILE_BYTES and n_bytes > _MAX_RATIO * chunk.total_compressed_size:
        return 0
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        # Any row may hold what the dictionary holds once.
        largest = max(largest, _page_bytes(opened, chunk.dictionary_page_offset))
    return max(1, min(_READ_ROWS, _BATCH_BYTES // max(1, largest)))


def _page_bytes(opened: Any, offset: int) -> int:
    """Return the size of a page after decompression, which is the second number in its header."""
    opened.seek(offset)
    header = opened.read(_HEADER_BYTES)
    # Thrift's compact protocol: a byte with the type, and seven bits of the number in each byte.
    _, start = _number_at(header, 1)
    number, _ = _number_at(header, start + 1)
    # Zigzag: the lowest bit is the sign.
    return number >> 1


def _number_at(header: bytes, start: int) -> tuple[int, int]:
    """Return a number of variable length, and the position behind it."""
    number = 0
    for index, byte in enumerate(header[start:]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, start + index + 1
    raise ValueError("the header of a page is damaged")


def _leaves(parquet: pq.ParquetFile, column: str, field: str) -> list[int]:
    """Return the numbers of the columns on disk that hold a field of a column, or all of it."""
    schema = parquet.schema
    found = []
    for number in range(len(schema)):
        path = schema.column(number).path
        is_of_column = path == column or path.startswith(f"{column}.")
        is_field = not field or path.endswith(f".{field}")
        if is_of_column and is_field:
            found.append(number)
    return found


def _image_bytes(image: Any) -> bytes | Unusable:
    """Return the bytes of an image file, or why there are none."""
    if isinstance(image, list):
        if len(image) > 1:
            return Unusable(Reason.SEVERAL_IMAGES)
        image = image[0] if image else None
    if isinstance(image, dict):  # as Hugging Face writes it
        # Some writers store no bytes as b"", and no path as "".
        if not image.get("bytes") and image.get("path"):
            return Unusable(Reason.ONLY_A_PATH)
        image = image.get("bytes")
    if image is None:
        return Unusable(Reason.EMPTY)
    found: bytes = image
    return found
