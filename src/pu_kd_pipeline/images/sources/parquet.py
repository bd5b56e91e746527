"""Images in a column of Parquet files."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources.archives import archive_version, why_not_shared
from pu_kd_pipeline.images.sources.base import PASSED_OVER, SourceLostError, listing_table
from pu_kd_pipeline.images.sources.files import (
    SourceFile,
    check_version,
    file_state,
    file_system,
    has_mark,
    has_wildcard,
    is_hidden,
    is_local,
    is_remote_folder,
    literal_part,
    local_matches,
    lost_source_error,
    remote_literal_part,
    remote_version,
    state_of,
    unmarked_warning,
    with_marks,
)
from pu_kd_pipeline.images.sources.parquet_columns import (
    choose_columns,
    only_paths_error,
    read_columns,
    texts_to_read_as_dictionaries,
)
from pu_kd_pipeline.images.sources.parquet_images import holds_only_paths, read_images
from pu_kd_pipeline.images.sources.parquet_labels import labels_of_file
from pu_kd_pipeline.images.sources.path_names import (
    distinct_names,
    label_partitions,
    no_file_message,
    partition_folders,
    remote_partition_folders,
    with_partition,
)
from pu_kd_pipeline.masking import without_credentials

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from pu_kd_pipeline.params.data_ingestion import ImageSource


logger = logging.getLogger(__name__)

_READ_BYTES = 8 * 2**20  # read-ahead in a column, so that no row group is in memory as a whole
# An image file has more bytes than this, but many rows of a small table may be empty.
_MIN_BYTES_PER_ROW = 16
_FEW_ROWS = 100_000
_FILE_EXTENSIONS = (".parquet", ".parq", ".pq")


class ParquetSource:
    """Parquet files with a column of images (bytes), which may have `id`, `label` and `label_name`.

    One file, a folder or a glob; local or at any fsspec URL. The names of the columns are
    parameters. An image may be a struct with a field `bytes`, as Hugging Face writes it, or a list
    of one. Without ids an image is called by its file and row.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._source = source
        self._path = str(source.path)
        self._fs, root = file_system(self._path)
        self._n_unmarked = 0  # remote files whose changes cannot be seen in full
        self._n_hidden = 0
        self._largest_row_group = 0  # its images; known once the files were listed
        if is_local(self._fs):
            files = _local_files(root)
            base = literal_part(root)
            self._n_hidden = _count_hidden_files(root)
        else:
            files = self._remote_files(root)
            base = remote_literal_part(root)
        self._files = sorted(files)
        if not self._files:
            raise InputError(no_file_message(self._path, root, self._fs))
        paths = [file.path for file in self._files]
        self._names = distinct_names(paths, base)
        label_columns = {
            "label": source.label_column or "label",
            "label_name": source.label_name_column or "label_name",
        }
        self._partitions = label_partitions(paths, base, label_columns)

    def _remote_files(self, root: str) -> Iterator[SourceFile]:
        found: dict[str, dict[str, Any]] = {}
        if is_remote_folder(self._fs, root, _FILE_EXTENSIONS):
            for folder in remote_partition_folders(self._fs, root.rstrip("/")):
                found |= self._fs.glob(f"{folder}/*.parquet", detail=True)
            root = f"{root.rstrip('/')}/*.parquet"
        elif has_wildcard(root):
            found = self._fs.glob(root, detail=True)
        elif self._fs.exists(root):
            found = {root: self._fs.info(root)}
        version_of_archive = archive_version(self._fs)
        for file, about in found.items():
            # Some writers make a folder that is called like a file.
            if about.get("type") == "directory":
                continue
            if has_wildcard(root) and is_hidden(file, root):
                self._n_hidden += 1
                continue
            marked = with_marks(self._fs, file, about)
            if not has_mark(marked):
                self._n_unmarked += 1
            version = version_of_archive + remote_version(marked)
            yield SourceFile(file, version, "")

    @staticmethod
    def state(source: ImageSource) -> str:
        return state_of(lambda: ParquetSource(source, seed=0)._files)

    def listing(self) -> pd.DataFrame:
        tables = []
        for number, file in enumerate(self._files):
            table = self._list_file(number, file)
            tables.append(table)
        listing = pd.concat(tables, ignore_index=True)
        if listing.empty:
            raise InputError(f"{self._path} holds no image: it has no rows")
        if self._n_unmarked:
            logger.warning(unmarked_warning(self._path, self._n_unmarked, len(self._files)))
        if self._n_hidden:
            listing.attrs[PASSED_OVER] = {"hidden file": self._n_hidden}
        return listing

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        for number in rows["file"].unique():
            found = self._files[number]
            file = found.path
            # The rows of another file of this name have other images.
            if is_local(self._fs):
                check_version(file, found.version)
            is_in_file = rows["file"] == number
            rows_of_file = rows.loc[is_in_file, "row"].to_numpy()
            try:
                with self._fs.open(file) as opened:
                    parquet = _open(opened)
                    columns = choose_columns(
                        parquet.schema_arrow, self._source, file, self._partitions[number]
                    )
                    yield from read_images(parquet, opened, columns["image"], rows_of_file)
            # A damaged file makes its reader raise nearly anything, and so does the network.
            except Exception as exc:
                cause = without_credentials(f"{type(exc).__name__}: {exc}", self._path)
                raise SourceLostError(lost_source_error(file, cause)) from exc

    def why_not_shared(self, n_images: int) -> str | None:
        if self._largest_row_group > n_images:
            return (
                f"it has row groups of {self._largest_row_group:,} images, which would be read for "
                f"each {n_images:,} again"
            )
        return why_not_shared(self._fs)

    def _list_file(self, number: int, found: SourceFile) -> pd.DataFrame:
        file = found.path
        # A large file is no fault here: it is read in parts.
        if found.fault not in ("", Reason.TOO_LARGE):
            raise InputError(f"{file}: {found.fault}. Fix or remove it")
        with _errors_of_reader_explained(file), self._fs.open(file) as opened:
            parquet = _open(opened)
            schema = parquet.schema_arrow
            columns = choose_columns(schema, self._source, file, self._partitions[number])
            size_bytes = self._fs.info(file).get("size")
            _check_row_count(parquet, size_bytes)
            if holds_only_paths(parquet, columns["image"]):
                raise InputError(only_paths_error(columns["image"], file))
            texts = texts_to_read_as_dictionaries(schema, columns)
            as_dictionaries = _open(opened, texts)
            values = read_columns(as_dictionaries, columns, file, size_bytes)
            largest = _largest_row_group(parquet)
            self._largest_row_group = max(self._largest_row_group, largest)

        n_rows = parquet.metadata.num_rows
        values = with_partition(values, self._partitions[number], n_rows, file)
        labels, label_names = labels_of_file(schema, values, file, columns.get("label", "label"))
        ids = _ids(values.get("id"), self._names[number], n_rows)
        # A file is replaced as a whole: all its images share a version, of before it was read.
        return listing_table(
            ids,
            labels,
            label_names,
            versions=[found.version] * n_rows,
            file=np.full(n_rows, number),
            row=np.arange(n_rows),
        )


def _local_files(path: str) -> Iterator[SourceFile]:
    """Yield the files that a local path or pattern stands for; none is opened."""
    if os.path.isdir(path):
        matches = []
        for folder in partition_folders(path):
            pattern = f"{glob.escape(folder)}/*.parquet"
            matches += glob.glob(pattern)
    else:
        matches = local_matches(path)
    for match in matches:
        # Some writers make a folder that is called like a file.
        if os.path.lexists(match) and not os.path.isdir(match):
            version, fault = file_state(match)
            yield SourceFile(match, version, fault)


def _count_hidden_files(path: str) -> int:
    """Return how many files a local folder or pattern would stand for if they were not hidden.

    macOS puts `._a.parquet` next to `a.parquet`.
    """
    pattern = path
    if os.path.isdir(path):
        pattern = f"{glob.escape(path)}/*.parquet"
    if os.path.lexists(pattern) or not _matches_any_name(pattern):
        return 0
    folder, name = os.path.split(pattern)
    matches = local_matches(os.path.join(folder, f".{name}"))
    return sum(map(os.path.isfile, matches))


def _matches_any_name(pattern: str) -> bool:
    """Return whether the names that a pattern stands for may begin with any character."""
    return PurePosixPath(pattern).name.startswith("*")


@contextmanager
def _errors_of_reader_explained(file: str) -> Iterator[None]:
    """Turn whatever the reader of a damaged file raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as exc:
        cause = without_credentials(f"{type(exc).__name__}: {exc}", file)
        raise InputError(
            f"{file} is not a Parquet file that can be read ({cause}): "
            "correct `path`, or fix the file"
        ) from exc


def _open(opened: Any, read_dictionary: list[str] | None = None) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        opened, buffer_size=_READ_BYTES, pre_buffer=False, read_dictionary=read_dictionary
    )


def _largest_row_group(parquet: pq.ParquetFile) -> int:
    """Return the number of rows of the largest row group of a file."""
    about = parquet.metadata
    sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    return max(sizes, default=0)


def _check_row_count(parquet: pq.ParquetFile, size_bytes: int | None) -> None:
    """Refuse a count that cannot be true, before lists of that length are made.

    Raises:
        ValueError: a damaged file declares more rows than its bytes can hold images.
    """
    n_rows = parquet.metadata.num_rows
    if size_bytes is None:  # some file systems do not know it
        return
    most = max(_FEW_ROWS, size_bytes // _MIN_BYTES_PER_ROW)
    if not 0 <= n_rows <= min(size_bytes, most):
        raise ValueError(f"it declares {n_rows:,} rows in {size_bytes:,} bytes")


def _ids(given: list[Any] | None, name: str, n_rows: int) -> list[str]:
    """Return the ids of a file's images: those given, or its name and the row."""
    if given is None:
        given = [None] * n_rows
    ids = []
    for row, value in enumerate(given):
        image_id = str(value)
        if value is None:
            image_id = f"{name}:{row}"
        ids.append(image_id)
    return ids
