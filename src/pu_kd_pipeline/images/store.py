"""Image stores: how many images there are, and the uint8 batch of any rows.

There are two kinds with the same interface. A packed store keeps the pixels of a shard in one
memory-mapped array `<shard>.npy` (N, C, H, W); an encoded store keeps the images' own bytes in an
Arrow file `<shard>.images.arrow`, memory-mapped as well, and decodes the rows that are read. Each
has an index `<shard>.index.parquet`, and `store.json` lists the shards. Every file is verified: the
index and the lists as a whole, pixels and images one by one when they are first read.

A store may also be on an object store. A shard is then a copy in a cache of bounded size, which is
opened for each read and closed after it, so that the disk space of an old copy is really free.

Writing a store is in `images.ingestion`; this module is what other stages see, and it is cheap to
import: pandas, pyarrow and Pillow are imported where they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.images.row_checksums import RowChecksums
from pu_kd_pipeline.images.shard_files import (
    RUN_AGAIN,
    index_file,
    index_schema,
    index_to_pandas,
    open_encoded,
    open_packed,
    pixel_file,
    read_index_table,
)
from pu_kd_pipeline.images.store_file import STORE_FILE, Shard, Specification, read_store_file
from pu_kd_pipeline.storage.folders import (
    Folder,
    existing_files,
    file_sizes,
    forget_damaged_copy,
    read_file,
    shown,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


QUARANTINE_FILE = "quarantine.parquet"
_MAX_DECODING_THREADS = 8


@dataclass(frozen=True, eq=False)
class ImageStore:
    """A folder of images, read by row number. Several processes and threads may read at a time."""

    folder: Folder
    specification: Specification
    shards: tuple[Shard, ...]
    quarantine_counts: dict[str, int]

    @staticmethod
    def open(folder: Folder | str) -> ImageStore:
        """Return the store in a folder.

        Raises:
            InputError: there is none, it is not complete, or its files were tampered with.
        """
        if isinstance(folder, str):
            folder = Path(folder)
        specification, shards, quarantine_counts = read_store_file(folder)
        kind = specification.kind
        existing = existing_files(folder, [pixel_file(shard.name, kind) for shard in shards])
        missing = []
        for shard in shards:
            if pixel_file(shard.name, kind) not in existing:
                missing.append(shard.name)
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(shards)} shards are missing, such as "
                f"{missing[0]}: {RUN_AGAIN}"
            )
        return ImageStore(folder, specification, shards, quarantine_counts)

    def __len__(self) -> int:
        return sum(shard.n for shard in self.shards)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the opened files behind: the other process opens them for itself."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @property
    def kind(self) -> Literal["packed", "encoded"]:
        """How the images are kept."""
        return self.specification.kind

    @property
    def n_channels(self) -> int:
        """1 for gray, 3 for RGB."""
        return self.specification.channels

    @property
    def size_px(self) -> int:
        """Height and width of every image."""
        return self.specification.size_px

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.n_channels, self.size_px, self.size_px

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any image, id or label, and with the order.

        Each shard's name ends in a hash of its content, so that the names are enough.
        """
        names = [shard.name for shard in self.shards]
        # A changed specification makes other pixels of the same files.
        about = self.specification.content_fields()
        content = json.dumps([about, names], sort_keys=True)
        digest = hashlib.sha256(content.encode())
        return digest.hexdigest()[:16]

    @property
    def n_bytes(self) -> int:
        """Bytes on disk, or on the object store."""
        names = [STORE_FILE, QUARANTINE_FILE]
        for shard in self.shards:
            names += [pixel_file(shard.name, self.kind), index_file(shard.name)]
        return sum(file_sizes(self.folder, names).values())

    def pixel_bytes(self, rows: np.ndarray) -> int:
        """Return the bytes of the files that hold the images of some rows."""
        numbers = np.unique(np.searchsorted(self._starts, rows, side="right") - 1)
        names = [pixel_file(self.shards[number].name, self.kind) for number in numbers]
        return sum(file_sizes(self.folder, names).values())

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per image, in row order.

        Columns: `id`, `source`, `label` (Int32, class of the teacher or null), `relevant` (boolean:
        belongs to a class of the teacher, null where unknown), `sha256` (of the pixels), `shard`,
        `row` (within the shard).
        """
        import pandas as pd
        import pyarrow as pa

        columns = ["id", "source", "label", "relevant", "sha256", "row"]
        tables = [self._index_of(shard, columns) for shard in self.shards]
        if tables:
            table = pa.concat_tables(tables)
        else:
            empty = index_schema().empty_table()
            table = empty.select(columns)
        table = table.replace_schema_metadata()
        index = index_to_pandas(table)

        names = np.array([shard.name for shard in self.shards], dtype=object)
        lengths = [shard.n for shard in self.shards]
        name_per_row = names.repeat(lengths)
        index.insert(5, "shard", pd.Series(name_per_row, dtype="str"))

        return index

    def shard_ids(self, shard: Shard) -> pa.Array:
        """Return the ids of one shard's images, in row order; no other shard is read."""
        table = self._index_of(shard, ["id"])
        return table["id"].combine_chunks()

    def _index_of(self, shard: Shard, columns: list[str]) -> pa.Table:
        """Return columns of a shard's index.

        Raises:
            InputError: it is damaged.
        """
        table = read_index_table(self.folder, shard.name, columns)
        if table.num_rows != shard.n:
            file = shown(self.folder, index_file(shard.name))
            raise InputError(
                f"{file} is not the index of {shard.n:,} images: delete it and {RUN_AGAIN}"
            )
        return table

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The images that are not in the store: `id`, `source`, `status` (the reason).

        Raises:
            InputError: the file is damaged, or is not the one of this store.
        """
        table = read_quarantine(self.folder)
        n_quarantined = sum(self.quarantine_counts.values())
        if table.num_rows != n_quarantined:
            file = shown(self.folder, QUARANTINE_FILE)
            raise InputError(
                f"{file} lists {table.num_rows:,} images, its store says {n_quarantined:,}: "
                f"delete it and {RUN_AGAIN}"
            )
        # Without the metadata that pandas added to the file.
        described = table.select(["id", "source", "status"]).replace_schema_metadata()
        quarantine: pd.DataFrame = described.to_pandas()
        return quarantine

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, C, H, W) uint8 images of (n,) row numbers, in any order, repeated or not.

        Raises:
            IndexError: a row number is outside 0..len-1.
        """
        rows = np.asarray(rows, dtype=np.int64)
        images = self._empty_images(len(rows))
        if rows.size == 0:
            return images
        first = rows.min()
        last = rows.max()
        if first < 0 or last >= len(self):
            raise IndexError(f"rows must lie in 0..{len(self) - 1}, got {first}..{last}")

        shard_numbers = np.searchsorted(self._starts, rows, side="right") - 1
        touched = np.unique(shard_numbers)
        if len(touched) == 1:
            # The common case of shard-by-shard passes: no copy between the shard and `images`.
            shard = self.shards[touched[0]]
            rows_of_shard = rows - shard.start
            self._read_into(images, shard, rows_of_shard)
            return images

        for number in touched:
            shard = self.shards[number]
            places = np.flatnonzero(shard_numbers == number)
            rows_of_shard = rows[places] - shard.start
            images[places] = self._read_rows(shard, rows_of_shard)

        return images

    def iter_batches(self, shard: Shard, batch_size: int) -> Iterator[np.ndarray]:
        """Yield the (n, C, H, W) uint8 images of a shard in order, n at most `batch_size`.

        A packed store on this machine yields read-only views of a memory map; other stores yield
        arrays of their own.
        """
        for start in range(0, shard.n, batch_size):
            stop = min(start + batch_size, shard.n)
            rows = np.arange(start, stop)
            if self.kind == "packed" and isinstance(self.folder, Path):
                pixels, checksums = self._open(shard)
                batch = pixels[start:stop]
                checksums.verify(rows, batch)
                yield batch
            else:
                yield self._read_rows(shard, rows)

    def _empty_images(self, n: int) -> np.ndarray:
        return np.empty((n, *self.image_shape), dtype=np.uint8)

    @cached_property
    def _starts(self) -> np.ndarray:
        starts = [shard.start for shard in self.shards]
        return np.array(starts, dtype=np.int64)

    @cached_property
    def _opened(self) -> dict[str, tuple[Any, RowChecksums]]:
        """The memory-mapped shards by name, opened when they are first read."""
        return {}

    @cached_property
    def _checksums_of_copies(self) -> dict[str, tuple[Any, RowChecksums]]:
        """By name of a shard on an object store: which copy of it, and what was verified of it."""
        return {}

    @contextmanager
    def _opened_shard(self, shard: Shard) -> Iterator[tuple[Any, RowChecksums]]:
        """Yield what holds the images of a shard, and their checksums.

        They must not be used after the context is left: the copy of a remote shard may be removed.
        """
        if isinstance(self.folder, Path):
            yield self._open(shard)
            return
        known_copy, checksums = self._checksums_of_copies.get(shard.name, (None, None))
        # More than once if the copy was replaced meanwhile: nothing was verified of the new one.
        while True:
            # The index is not read while a copy is held: the cache may not have room for both.
            if checksums is None:
                known_copy = None
                checksums = self._new_checksums(shard)
            with self.folder.copy(pixel_file(shard.name, self.kind)) as path:
                about = path.stat()
                copy = (path, about.st_ino, about.st_mtime_ns)
                if known_copy in (None, copy):
                    self._checksums_of_copies[shard.name] = (copy, checksums)
                    yield self._open_file(path, shard), checksums
                    return
            checksums = None

    def _open(self, shard: Shard) -> tuple[Any, RowChecksums]:
        """Return what holds the images of a shard on this machine, and their checksums."""
        name = shard.name
        if name not in self._opened:
            assert isinstance(self.folder, Path)
            path = self.folder / pixel_file(name, self.kind)
            images = self._open_file(path, shard)
            self._opened[name] = (images, self._new_checksums(shard))
        return self._opened[name]

    def _open_file(self, path: Path, shard: Shard) -> Any:
        file = shown(self.folder, pixel_file(shard.name, self.kind))
        if self.kind == "packed":
            return open_packed(path, (shard.n, *self.image_shape), file)
        return open_encoded(path, shard.n, file)

    def _new_checksums(self, shard: Shard) -> RowChecksums:
        file = shown(self.folder, pixel_file(shard.name, self.kind))
        index = self._index_of(shard, ["checksum"])
        return RowChecksums(index["checksum"].to_numpy(), file)

    def _read_rows(self, shard: Shard, rows: np.ndarray) -> np.ndarray:
        images = self._empty_images(len(rows))
        self._read_into(images, shard, rows)
        return images

    def _read_into(self, images: np.ndarray, shard: Shard, rows: np.ndarray) -> None:
        try:
            self._read_intact_into(images, shard, rows)
        except FileNotFoundError as exc:
            file = shown(self.folder, pixel_file(shard.name, self.kind))
            raise InputError(f"there is no {file}: {RUN_AGAIN}") from exc

    def _read_intact_into(self, images: np.ndarray, shard: Shard, rows: np.ndarray) -> None:
        """Read images, from another copy if that of a remote shard is damaged."""
        try:
            self._read_once_into(images, shard, rows)
        except UnavailableError:
            raise
        except InputError:
            if isinstance(self.folder, Path):
                raise
            # The copy may be damaged, and the shard not.
            forget_damaged_copy(self.folder, pixel_file(shard.name, self.kind))
            self._read_once_into(images, shard, rows)

    def _read_once_into(self, images: np.ndarray, shard: Shard, rows: np.ndarray) -> None:
        with self._opened_shard(shard) as (stored, checksums):
            if self.kind == "packed":
                # "clip" lets NumPy write straight into `images`; the rows were checked before.
                np.take(stored, rows, axis=0, out=images, mode="clip")
                checksums.verify(rows, images)
            else:
                self._decode_into(images, shard, rows, stored, checksums)

    def _decode_into(
        self,
        images: np.ndarray,
        shard: Shard,
        rows: np.ndarray,
        encoded: pa.ChunkedArray,
        checksums: RowChecksums,
    ) -> None:
        from pu_kd_pipeline.images.decoding import Decoder, Unusable

        decoder = Decoder.of(self.specification)
        # Fetched one at a time: the bytes of a whole batch need not be in memory at once.
        raws = _verified_images(encoded, checksums, rows)

        # A thread costs more than it saves unless it has two images or more to decode.
        n_busy = max(1, len(rows) // 2)
        n_cores = os.cpu_count() or 1
        n_workers = min(n_cores, _MAX_DECODING_THREADS, n_busy)

        decoded = decoder.decode_all(raws, n_workers)
        for place, (_, pixels) in enumerate(decoded):
            if isinstance(pixels, Unusable):
                file = shown(self.folder, pixel_file(shard.name, self.kind))
                raise InputError(
                    f"{file}, row {rows[place]}: the image can no longer be decoded "
                    f"({pixels.reason}): delete the folder and {RUN_AGAIN}"
                )
            images[place] = pixels


def _verified_images(
    encoded: pa.ChunkedArray, checksums: RowChecksums, rows: np.ndarray
) -> Iterator[bytes]:
    """Yield the bytes of the images of an encoded shard at (n,) rows of it.

    Raises:
        InputError: an image is damaged.
    """
    for row in rows:
        image: bytes = encoded[int(row)].as_py()
        checksums.verify(np.array([row]), [image])
        yield image


def find_rows(images: ImageStore, ids: np.ndarray, name: str) -> np.ndarray:
    """Return the rows of a store that hold the given ids.

    Args:
        images: the store.
        ids: (n,) strings.
        name: name of the data that holds the ids, for the message.

    Returns:
        (n,) int64 row numbers, in the order of the ids.

    Raises:
        InputError: the store does not contain an id, so the data was made from other images.
    """
    import pandas as pd

    stored_ids = pd.Index(images.index["id"])
    rows = stored_ids.get_indexer(pd.Index(ids))
    # pandas gives -1 for an id that is not there.
    is_unknown = rows < 0
    if is_unknown.any():
        n_unknown = int(is_unknown.sum())
        raise InputError(
            f"{name}: {n_unknown} of {len(ids)} ids are not in the image store, such as "
            f"{ids[is_unknown][0]!r}. It was made from other images: rerun the stages from "
            "`feature_extraction` on"
        )
    return rows.astype(np.int64)


def read_quarantine(folder: Folder) -> pa.Table:
    """Return the images that a store quarantined: `id`, `source`, `status`, `version`.

    Raises:
        InputError: the file is damaged.
    """
    from pu_kd_pipeline.storage.parquet_files import read_parquet

    def read(path: Path) -> pa.Table:
        return read_parquet(path, QUARANTINE_FILE)

    file = shown(folder, QUARANTINE_FILE)
    try:
        return read_file(folder, QUARANTINE_FILE, read)
    except InputError:  # of an object store, which is no damage
        raise
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{file} is damaged ({type(exc).__name__}: {exc}): delete it and {RUN_AGAIN}"
        ) from exc
