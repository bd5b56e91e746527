"""Tables that are kept as one Parquet file per shard: made one at a time, and kept while intact.

A shard's file name contains the fingerprints of its inputs, and of the code and the libraries that
make it: a file that is present and intact is up to date. A table may be in a folder of this machine
or on an object store. There, what is present counts as intact until it is read: it appeared as a
whole, and verifying it would mean to download the table.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.progress import track
from pu_kd_pipeline.storage.atomic import remove_leftovers
from pu_kd_pipeline.storage.checked_json import from_checked_json, to_checked_json
from pu_kd_pipeline.storage.folders import (
    Folder,
    RemoteFile,
    RemoteFolder,
    existing_files,
    file_names,
    read_file,
    read_text,
    remove_files,
    shown,
    write_text,
    writing_file,
)
from pu_kd_pipeline.storage.parquet_files import (
    check_parquet,
    max_parquet_bytes,
    read_n_rows,
    read_parquet,
    write_parquet,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
_LIST = "shards.json"
_SUFFIX = ".parquet"
# How all stages name their shards: after what they are made of, and a hash.
_SHARD_NAME = re.compile(r".+-[0-9a-f]{12}")
_MAX_NAME_LENGTH = 200  # file systems end at 255 bytes, of which temporary names take some


@runtime_checkable
class Engine(Protocol):
    """What makes shards of a table in another way than one after the other in this process."""

    def make_missing(self, folder: Folder, names: Sequence[str]) -> None:
        """Make shards with `write_shard`, in any order, and show the progress."""


@dataclass(frozen=True)
class ShardedTable:
    """The shards of one table, in order; nothing is read before it is asked for."""

    folder: Folder
    names: tuple[str, ...]

    @staticmethod
    def open(folder: Folder) -> ShardedTable:
        """Return the table of a folder.

        Raises:
            InputError: it is not there, not complete, or its list of shards is damaged.
        """
        list_file = shown(folder, _LIST)
        try:
            names = _read_list(folder)
        except FileNotFoundError as exc:
            raise InputError(f"there is no table at {folder}: run the stage that makes it") from exc
        except InputError:
            raise
        except (ValueError, RecursionError, OSError) as exc:
            raise InputError(
                f"{list_file} cannot be used ({exc}): delete it, and run the stage that wrote it "
                "again"
            ) from exc
        outside = [name for name in names if _leads_out(name)]
        if outside:
            raise InputError(
                f"{list_file} names a shard {outside[0]!r}, which leads out of the table: delete it"
            )
        existing = existing_files(folder, map(shard_file, names))
        missing = [name for name in names if shard_file(name) not in existing]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing, such as "
                f"{missing[0]}: run the stage that wrote it again"
            )
        return ShardedTable(folder, names)

    @staticmethod
    def write(
        folder: Folder,
        shards: Mapping[str, Callable[[], pa.Table]],
        *,
        keeps_others: bool = False,
        makes_again: bool = False,
    ) -> ShardedTable:
        """Make the shards that are missing or damaged, list them, and remove other shards.

        Those are the shards that were listed before, and files that are named like the shards of
        a stage, such as a killed run leaves. Files of somebody else stay.

        Args:
            folder: where the shards live.
            shards: by name, in order, the function that makes the shard; a name is unique and safe
                as a file name. Where the mapping is an `Engine`, it makes the shards itself.
            keeps_others: leave shards that no longer belong where they are, unlisted, because they
                may be needed again.
            makes_again: remove those of the shards that exist first.
        """
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        if makes_again:
            # Before the first is made: who resumes after a kill must not find and keep old ones.
            remove_files(folder, map(shard_file, shards))
        missing = _missing(folder, shards)
        if missing and isinstance(shards, Engine):
            shards.make_missing(folder, missing)
        elif missing:
            for name in track(missing, name=folder.name, unit="shards"):
                write_shard(shards[name](), folder, name)
        listed_before = set(_table_file_names(folder))
        write_text(folder, _LIST, to_checked_json({"shards": list(shards)}))

        # Only after the new list: the old one must never name a file that is gone.
        if not keeps_others:
            listed = set(map(shard_file, shards))
            others = _own_files(folder, listed_before) - listed
            remove_files(folder, sorted(others))
        return ShardedTable(folder, tuple(shards))

    def __len__(self) -> int:
        return sum(_read(read_n_rows, self.folder, name) for name in self.names)

    @property
    def facts(self) -> dict[str, str]:
        """The metadata that the first shard was made with."""
        if not self.names:
            return {}
        without_columns = _read(read_parquet, self.folder, self.names[0], columns=())
        return _decode_metadata(without_columns.schema)

    @property
    def fingerprint(self) -> str:
        """A hash of the shards' names, which contain the fingerprints of their inputs."""
        content = "\n".join(self.names)
        return hashlib.sha256(content.encode()).hexdigest()

    def shards(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the shards in order."""
        for name in self.names:
            yield _read(read_parquet, self.folder, name, columns=columns or None)

    def shard(self, name: str) -> pa.Table:
        """Return the shard of a name."""
        return next(ShardedTable(self.folder, (name,)).shards())

    def arrays(self, column: str) -> np.ndarray:
        """Return a fixed-size-list column as one (N, D) array, or a plain column as (N,)."""
        parts = []
        for table in self.shards([column]):
            parts.append(as_array(table[column]))
        if not parts:
            return np.empty((0,), dtype=np.float32)
        return np.concatenate(parts)

    def to_pandas(self) -> pd.DataFrame:
        """Return the whole table; meant for narrow tables."""
        tables = []
        for table in self.shards():
            table = table.replace_schema_metadata()
            tables.append(table.to_pandas())
        if not tables:
            return pd.DataFrame()
        return pd.concat(tables, ignore_index=True)


def _read_list(folder: Folder) -> tuple[str, ...]:
    """Return the shards that the list of a folder names.

    Raises:
        ValueError: it is damaged, or does not hold distinct names.
        OSError: it cannot be read.
    """
    content = from_checked_json(read_text(folder, _LIST))
    listed = content.get("shards")
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError("it is not a list of names")
    if len(set(listed)) < len(listed):
        raise ValueError("it names a shard twice")
    for name in listed:
        if not name.isprintable() or len(name) > _MAX_NAME_LENGTH:
            raise ValueError("it names a shard with a name that no file can have")
    return tuple(listed)


def table_files(folder: Path) -> list[Path]:
    """Return the list of shards and the shards on it; of a damaged list, only the list."""
    files = [folder / name for name in _table_file_names(folder)]
    return [file for file in files if file.is_file()]


def remote_table_files(folder: RemoteFolder) -> dict[str, RemoteFile]:
    """Return name -> file, as `table_files`; by one listing."""
    files = folder.files()
    if _LIST not in files:
        return {}
    return {name: files[name] for name in _table_file_names(folder) if name in files}


def _table_file_names(folder: Folder) -> list[str]:
    names = [_LIST]
    try:
        names += map(shard_file, _read_list(folder))
    except InputError:  # of an object store, which is no damage
        raise
    except (OSError, ValueError, RecursionError):
        # Of a damaged list nothing is believed: the shards are checked when the table is written.
        return [_LIST]
    return names


def _own_files(folder: Folder, listed: set[str]) -> set[str]:
    """Return the files of shards in a folder: those that are listed, or named like a shard."""
    own = set()
    for name in file_names(folder, _SUFFIX):
        if name in listed or _SHARD_NAME.fullmatch(name.removesuffix(_SUFFIX)):
            own.add(name)
    return own


def write_shard(table: pa.Table, folder: Folder, name: str) -> None:
    """Write a shard under its name, as a whole or not at all."""
    with writing_file(folder, shard_file(name), max_parquet_bytes(table)) as file:
        write_parquet(table, file, name)
    # Otherwise the memory of all shards made so far adds up.
    pa.default_memory_pool().release_unused()


def shard_file(name: str) -> str:
    """Return the name of the file of a shard."""
    return f"{name}{_SUFFIX}"


def _leads_out(name: str) -> bool:
    return Path(shard_file(name)).name != shard_file(name)


def _missing(folder: Folder, names: Iterable[str]) -> list[str]:
    """Return the shards that have to be made."""
    if isinstance(folder, Path):
        return [name for name in names if not _is_intact(folder, name)]
    existing = existing_files(folder, map(shard_file, names))
    return [name for name in names if shard_file(name) not in existing]


def _is_intact(folder: Path, name: str) -> bool:
    """Return whether a shard exists and its checksum is right."""
    file = folder / shard_file(name)
    try:
        check_parquet(file, name)
    except FileNotFoundError:
        return False
    except (ValueError, OSError) as exc:
        logger.warning("%s is damaged (%s): it is made again", file, exc)
        return False
    return True


def _read(reader: Callable[..., T], folder: Folder, name: str, **options: Any) -> T:
    """Return what a reader of a Parquet file returns for a shard.

    Raises:
        InputError: the file is damaged. It has to be deleted, because the runner takes the stage
            that wrote it for up to date while the file's size and times stay the same.
    """
    file = shown(folder, shard_file(name))
    try:
        return read_file(folder, shard_file(name), partial(_apply, reader, name, options))
    except InputError:  # of an object store, which is no damage
        raise
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{file} is damaged ({exc}): delete it, and run the stage that wrote it again"
        ) from exc


def _apply(reader: Callable[..., T], name: str, options: Mapping[str, Any], path: Path) -> T:
    return reader(path, name, **options)


def _decode_metadata(schema: pa.Schema) -> dict[str, str]:
    facts = {}
    for key, value in (schema.metadata or {}).items():
        # Bytes that are not UTF-8 can only come from damage; reading must not fail on them.
        facts[key.decode(errors="replace")] = value.decode(errors="replace")
    return facts


def fixed_size_list(values: np.ndarray) -> pa.Array:
    """Return a (N, D) float array as an Arrow column of fixed-size lists."""
    # Fixed-size lists need no offsets: the column is one flat buffer.
    flat = np.ascontiguousarray(values).reshape(-1)
    width = values.shape[1]
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return an Arrow column as a NumPy array; the inverse of `fixed_size_list`."""
    values = column.combine_chunks()
    # Depending on its version, pyarrow combines chunks into an array or into one chunk.
    if isinstance(values, pa.ChunkedArray):
        values = _single_array(values)
    if pa.types.is_fixed_size_list(values.type):
        flat = values.flatten().to_numpy(zero_copy_only=False)
        width = values.type.list_size
        return flat.reshape(len(values), width)
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _single_array(chunked: pa.ChunkedArray) -> pa.Array:
    # Without any chunk there is nothing to concatenate.
    if chunked.num_chunks == 0:
        return pa.array([], chunked.type)
    return pa.concat_arrays(chunked.chunks)


@dataclass(frozen=True)
class InMemoryTable(ShardedTable):
    """Tables that are not stored anywhere, read like the shards of one table."""

    tables: tuple[pa.Table, ...]

    @staticmethod
    def of(name: str, tables: Sequence[pa.Table]) -> InMemoryTable:
        """Return the tables as the shards of one."""
        return InMemoryTable(folder=Path(), names=(name,), tables=tuple(tables))

    @staticmethod
    def of_shards(tables: Mapping[str, pa.Table]) -> InMemoryTable:
        """Return tables as the shards of these names."""
        return InMemoryTable(Path(), tuple(tables), tuple(tables.values()))

    def __len__(self) -> int:
        return sum(table.num_rows for table in self.tables)

    @property
    def facts(self) -> dict[str, str]:
        """The metadata of the first table."""
        if not self.tables:
            return {}
        return _decode_metadata(self.tables[0].schema)

    def shard(self, name: str) -> pa.Table:
        """Return the table of a name."""
        return self.tables[self.names.index(name)]

    def shards(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the tables."""
        for table in self.tables:
            if columns:
                table = table.select(list(columns))
            yield table
