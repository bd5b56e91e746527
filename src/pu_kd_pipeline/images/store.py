"""Image stores: how many images, and which uint8 batch for these rows.

Two kinds answer alike. A packed store keeps the pixels of a shard in one memory-mapped array `<shard>.npy`
(N, C, H, W); an encoded store keeps the images' own bytes in an Arrow file `<shard>.images.arrow`, memory-mapped as
well, and decodes what is asked for. Beside each lies `<shard>.index.parquet`, and `store.json` lists the shards.
Writing a store is in `image_ingestion`; this module is what other stages see, and importing it costs next to nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.shard_files import (
    index_file,
    index_schema,
    open_encoded,
    open_packed,
    pixel_file,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


FORMAT = 1  # of the files; also raised when decoding changes pixels
STORE_FILE, QUARANTINE_FILE = "store.json", "quarantine.parquet"
_SAFE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")
_MOST_DECODING_THREADS = 8
_TOO_MANY = 2**48  # of anything: larger numbers in a store's file are damage


@dataclass(frozen=True)
class Specification:
    """What decides the content of a shard beside its images: shards of another specification are made anew."""

    kind: Literal["packed", "encoded"]
    channels: int
    size_px: int
    max_image_pixels: int
    format: int = FORMAT


@dataclass(frozen=True)
class Shard:
    """A stretch of rows: `n` images from row `start` on. The name ends in a fingerprint of ids, labels and pixels."""

    name: str
    n: int
    start: int


@dataclass(frozen=True, eq=False)
class ImageStore:
    """A folder of images, read by row number. Several processes and threads may read at the same time."""

    folder: Path
    specification: Specification
    shards: tuple[Shard, ...]
    quarantine_counts: dict[str, int]

    @staticmethod
    def open(folder: Path | str) -> ImageStore:
        """Return the store in a folder.

        Raises:
            InputError: there is none, it is not complete, or its files were tampered with.
        """
        folder = Path(folder)
        again = "run `kedro run --pipeline=data_ingestion`"
        try:
            about = json.loads((folder / STORE_FILE).read_text(encoding="utf-8"))
            if about["specification"]["format"] != FORMAT:
                raise InputError(
                    f"{folder} was written by another version of this program: {again}"
                )
            specification = _specification_in(about["specification"])
            named = [(str(shard["name"]), _count(shard["n"])) for shard in about["shards"]]
            counts = {str(reason): _count(count) for reason, count in about["quarantine"].items()}
        except FileNotFoundError as exc:
            raise InputError(f"there is no image store at {folder}: {again}") from exc
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError) as exc:
            raise InputError(
                f"{folder / STORE_FILE} is damaged ({exc!r}): delete the folder and {again}"
            ) from exc
        for name, _ in named:
            if not _SAFE_NAME.fullmatch(name):
                raise InputError(
                    f"{folder / STORE_FILE} names a shard {name!r}, which leads out of the store: {again}"
                )
        missing = [
            name for name, _ in named if not pixel_file(folder, name, specification.kind).is_file()
        ]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(named)} shards are missing, such as {missing[0]}: {again}"
            )
        starts = np.cumsum([0, *(n for _, n in named)]).tolist()
        shards = tuple(
            Shard(name, n, start) for (name, n), start in zip(named, starts[:-1], strict=True)
        )
        return ImageStore(folder, specification, shards, counts)

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
        """Sixteen hexadecimal digits that change with any image, id or label, and with the order of the rows."""
        content = json.dumps(
            [asdict(self.specification), [shard.name for shard in self.shards]], sort_keys=True
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        files = [self.folder / STORE_FILE, self.folder / QUARANTINE_FILE]
        for shard in self.shards:
            files += [
                pixel_file(self.folder, shard.name, self.kind),
                index_file(self.folder, shard.name),
            ]
        return sum(file.stat().st_size for file in files)

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row an image, in row order.

        Columns: `id`, `source`, `label` (Int32, class of the teacher or null), `relevant` (boolean: of a class of the
        teacher, null where unknown), `sha256` (of the pixels), `shard`, `row` (within the shard).
        """
        import pandas as pd
        import pyarrow as pa

        columns = ["id", "source", "label", "relevant", "sha256", "row"]
        tables = [self._index_of(shard, columns) for shard in self.shards]
        table = pa.concat_tables(tables) if tables else index_schema().empty_table().select(columns)
        dtypes = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
        index = table.replace_schema_metadata().to_pandas(types_mapper=dtypes.get)
        names = np.array([shard.name for shard in self.shards], dtype=object)
        index.insert(
            5, "shard", pd.Series(names.repeat([shard.n for shard in self.shards]), dtype="str")
        )
        return index

    def ids_of(self, shard: Shard) -> pa.Array:
        """Return the ids of one shard's images, in row order; nothing of other shards is read."""
        return self._index_of(shard, ["id"])["id"].combine_chunks()

    def _index_of(self, shard: Shard, columns: list[str]) -> pa.Table:
        """Return columns of a shard's index.

        Raises:
            InputError: it is damaged.
        """
        schema = index_schema()
        table = _read_parquet(index_file(self.folder, shard.name), columns)
        if table.num_rows != shard.n or table.schema.types != [
            schema.field(name).type for name in columns
        ]:
            raise InputError(
                f"{index_file(self.folder, shard.name)} is not the index of {shard.n:,} images: delete it and run "
                "`kedro run --pipeline=data_ingestion`"
            )
        return table

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The images that are not in the store: `id`, `source`, `status` (the reason)."""
        table = _read_parquet(self.folder / QUARANTINE_FILE, ["id", "source", "status"])
        # without what pandas wrote beside it, which can be damaged on its own
        quarantine: pd.DataFrame = table.replace_schema_metadata().to_pandas()
        return quarantine

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, C, H, W) uint8 images of (n,) row numbers, in any order, repeated or not.

        Raises:
            IndexError: a row number is outside 0..len-1.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must lie in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
        images = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
        if len(rows) == 0:
            return images
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        touched = np.unique(numbers)
        for number in touched:
            shard = self.shards[number]
            if len(touched) == 1:
                self._read_into(images, shard, rows - shard.start)
            else:
                places = np.flatnonzero(numbers == number)
                images[places] = self._rows_of(shard, rows[places] - shard.start)
        return images

    def read_shard(self, shard: Shard) -> np.ndarray:
        """Return the (N, C, H, W) uint8 images of a shard: a read-only memory map, or decoded for an encoded store."""
        return (
            self._pixels(shard)
            if self.kind == "packed"
            else self._rows_of(shard, np.arange(shard.n))
        )

    def iter_batches(self, shard: Shard, batch_size: int) -> Iterator[np.ndarray]:
        """Yield the images of a shard in order, at most `batch_size` at a time, (n, C, H, W) uint8."""
        for start in range(0, shard.n, batch_size):
            stop = min(start + batch_size, shard.n)
            if self.kind == "packed":
                yield self._pixels(shard)[start:stop]
            else:
                yield self._rows_of(shard, np.arange(start, stop))

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.array([shard.start for shard in self.shards], dtype=np.int64)

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    def _pixels(self, shard: Shard) -> np.ndarray:
        if shard.name not in self._opened:
            self._opened[shard.name] = open_packed(
                self.folder, shard.name, (shard.n, *self.image_shape)
            )
        pixels: np.ndarray = self._opened[shard.name]
        return pixels

    def _rows_of(self, shard: Shard, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
        self._read_into(images, shard, rows)
        return images

    def _read_into(self, images: np.ndarray, shard: Shard, rows: np.ndarray) -> None:
        if self.kind == "packed":
            # "clip" lets NumPy write straight into `images`; the rows were checked before
            np.take(self._pixels(shard), rows, axis=0, out=images, mode="clip")
        else:
            self._decode_into(images, shard, rows)

    def _decode_into(self, images: np.ndarray, shard: Shard, rows: np.ndarray) -> None:
        from pu_kd_pipeline.images.decoding import Decoder, Unusable

        if shard.name not in self._opened:
            self._opened[shard.name] = open_encoded(self.folder, shard.name, shard.n)
        encoded = self._opened[shard.name]
        about = self.specification
        decoder = Decoder(about.channels, about.size_px, about.max_image_pixels)
        raws = (encoded[int(row)].as_py() for row in rows)
        n_workers = min(os.cpu_count() or 1, _MOST_DECODING_THREADS, max(1, len(rows) // 2))
        for place, (_, pixels) in enumerate(decoder.decode_all(raws, n_workers)):
            if isinstance(pixels, Unusable):
                raise InputError(
                    f"{pixel_file(self.folder, shard.name, self.kind)}, row {rows[place]}: the image can no longer be "
                    f"decoded ({pixels.reason}): delete the folder and run `kedro run --pipeline=data_ingestion`"
                )
            images[place] = pixels


def rows_of(images: ImageStore, ids: np.ndarray, whose: str) -> np.ndarray:
    """Return the rows of a store that hold the given ids.

    Raises:
        InputError: the store has no such image: `whose` was made from other images.
    """
    import pandas as pd

    rows = pd.Index(images.index["id"]).get_indexer(pd.Index(ids))
    if (rows < 0).any():
        raise InputError(
            f"{whose}: {int((rows < 0).sum())} of {len(ids)} ids are not in the image store, such as "
            f"{ids[rows < 0][0]!r}. It was made from other images: rerun the stages from `feature_extraction` on"
        )
    return rows.astype(np.int64)


def _read_parquet(file: Path, columns: list[str]) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=columns, page_checksum_verification=True)
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{file} is damaged ({type(exc).__name__}: {exc}): delete it and run `kedro run --pipeline=data_ingestion`"
        ) from exc


def _specification_in(about: dict[str, Any]) -> Specification:
    """Return the specification that a store's file states.

    Raises:
        TypeError, ValueError: it is not one.
    """
    numbers = {
        name: _count(about[name]) for name in ("channels", "size_px", "max_image_pixels", "format")
    }
    if set(about) != {"kind", *numbers} or about["kind"] not in ("packed", "encoded"):
        raise ValueError(f"{about} is no specification")
    if numbers["channels"] not in (1, 3) or not 0 < numbers["size_px"] < _TOO_MANY:
        raise ValueError(
            f"there are no images of {numbers['channels']} x {numbers['size_px']} x {numbers['size_px']}"
        )
    return Specification(about["kind"], **numbers)


def _count(value: object) -> int:
    """Return a number of things.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or not 0 <= value < _TOO_MANY:
        raise ValueError(f"{value!r:.50} is not a number of things")
    return value
