"""Tables kept as one Parquet file a shard: made one at a time, skipped when present, read in order.

A shard's file name carries the fingerprints of what it was made from: a file that is present is a file that is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.progress import track
from pu_kd_pipeline.storage.atomic import remove_leftovers, replacing_file

_LIST = "shards.json"
_MOST_LETTERS = 200  # of a shard's name; file systems end at 255 bytes


@dataclass(frozen=True)
class ShardedTable:
    """The shards of one table, in order; nothing is read before it is asked for."""

    folder: Path
    names: tuple[str, ...]

    @staticmethod
    def open(folder: Path) -> ShardedTable:
        """Return the table of a folder.

        Raises:
            InputError: it is not there, or not complete.
        """
        try:
            names = _names_in(json.loads((folder / _LIST).read_text(encoding="utf-8")))
        except FileNotFoundError as exc:
            raise InputError(f"there is no table at {folder}") from exc
        except (ValueError, RecursionError, OSError) as exc:
            raise InputError(
                f"{folder / _LIST} is damaged ({exc}): delete the folder, and run what wrote it"
            ) from exc
        if outside := [name for name in names if _file(folder, name).parent != folder]:
            raise InputError(
                f"{folder / _LIST} names a shard {outside[0]!r}, which leads out of the table: delete it"
            )
        missing = [name for name in names if not _file(folder, name).is_file()]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing, such as {missing[0]}"
            )
        return ShardedTable(folder, names)

    @staticmethod
    def write(
        folder: Path, shards: Mapping[str, Callable[[], pa.Table]], *, keeps_others: bool = False
    ) -> ShardedTable:
        """Make the shards that are not there yet, remove those that no longer belong, and list them.

        Args:
            folder: where the shards live.
            shards: in order, a unique name (safe as a file name) and the function that makes the shard.
            keeps_others: leave shards that no longer belong where they are, unlisted: they may be wanted again.
        """
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        missing = [name for name in shards if not _file(folder, name).is_file()]
        for name in track(missing, name=folder.name, unit="shards") if missing else ():
            with replacing_file(_file(folder, name)) as temporary:
                pq.write_table(shards[name](), temporary)
            pa.default_memory_pool().release_unused()  # or what a shard took piles up with their number
        with replacing_file(folder / _LIST) as temporary:
            temporary.write_text(json.dumps(list(shards), indent=0))
        for file in folder.glob("*.parquet"):
            if file.stem not in shards and not keeps_others:
                file.unlink()
        return ShardedTable(folder, tuple(shards))

    def __len__(self) -> int:
        return sum(_read(pq.read_metadata, self.folder, name).num_rows for name in self.names)

    @property
    def facts(self) -> dict[str, str]:
        """What the first shard's makers wrote into its metadata."""
        metadata = (
            _read(pq.read_schema, self.folder, self.names[0]).metadata if self.names else None
        )
        return {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in (metadata or {}).items()
        }

    @property
    def fingerprint(self) -> str:
        """A hash of the shards' names, which stand for what they were made from."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def shards(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the shards in order."""
        for name in self.names:
            yield _read(
                pq.read_table,
                self.folder,
                name,
                columns=list(columns) if columns else None,
                memory_map=True,
            )

    def arrays(self, column: str) -> np.ndarray:
        """Return a fixed-size-list column as one (N, D) array, or a plain column as one (N,) array."""
        parts = [as_array(table[column]) for table in self.shards([column])]
        return np.concatenate(parts) if parts else np.empty((0,), dtype=np.float32)

    def to_pandas(self) -> pd.DataFrame:
        """Return the whole table; meant for narrow tables."""
        tables = [table.replace_schema_metadata().to_pandas() for table in self.shards()]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _names_in(listed: object) -> tuple[str, ...]:
    """Return the shards that a list names.

    Raises:
        ValueError: it is not a list of different names.
    """
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError("it is not a list of names")
    if len(set(listed)) < len(listed):
        raise ValueError("it names a shard twice")
    if not all(name.isprintable() and len(name) <= _MOST_LETTERS for name in listed):
        raise ValueError("it names a shard as no file can be called")
    return tuple(listed)


def files_of_table(folder: Path) -> list[Path]:
    """Return the list of shards and the shards on it; of a table that cannot be opened, what is there of them."""
    try:
        names = [str(name) for name in json.loads((folder / _LIST).read_text())]
    except (OSError, ValueError, TypeError):
        names = []
    return [
        file
        for file in (folder / _LIST, *(_file(folder, name) for name in names))
        if file.is_file()
    ]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet"


def _read(reader: Callable[..., Any], folder: Path, name: str, **options: Any) -> Any:
    """Return what a reader of pyarrow makes of a shard.

    Raises:
        InputError: it is damaged; since what is there counts as right, it has to be deleted.
    """
    file = _file(folder, name)
    try:
        return reader(file, **options)
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{file} is damaged ({exc}): delete it, and run the stage that wrote it again"
        ) from exc


def fixed_size_list(values: np.ndarray) -> pa.Array:
    """Return a (N, D) float array as an Arrow column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return an Arrow column as a NumPy array; the inverse of `fixed_size_list`."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_fixed_size_list(values.type):
        return (
            values.flatten()
            .to_numpy(zero_copy_only=False)
            .reshape(len(values), values.type.list_size)
        )
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


@dataclass(frozen=True)
class TableInMemory(ShardedTable):
    """Tables that are kept nowhere, read like the shards of one."""

    tables: tuple[pa.Table, ...]

    @staticmethod
    def of(name: str, tables: Sequence[pa.Table]) -> TableInMemory:
        """Return the tables as one."""
        return TableInMemory(Path(), (name,), tuple(tables))

    def __len__(self) -> int:
        return sum(table.num_rows for table in self.tables)

    @property
    def facts(self) -> dict[str, str]:
        """What the first table's metadata says."""
        metadata = self.tables[0].schema.metadata if self.tables else None
        return {key.decode(): value.decode() for key, value in (metadata or {}).items()}

    def shards(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the tables."""
        for table in self.tables:
            yield table.select(list(columns)) if columns else table
