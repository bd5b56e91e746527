"""Parquet files with a checksum of all their bytes, which is verified before they are used.

The checksum is an entry of the file's own metadata, so that it cannot get lost or be separated from
the file, and other programs can read the file as any other.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pu_kd_pipeline.storage.atomic import replacing_file

CHECKSUM_KEY = b"pu_kd_pipeline.checksum"
_UNSET = b"crc32:00000000"
# Thrift writes two bytes between key and value. Arrow keeps another copy of the entry in base64,
# which this does not match, and which keeps the value that is there before the file is sealed.
_ENTRY = re.compile(re.escape(CHECKSUM_KEY) + rb"..(crc32:[0-9a-f]{8})", re.DOTALL)
_TAIL_BYTES = 8  # at the end of every Parquet file: length of the footer, and "PAR1"
_BLOCK_BYTES = 2**22
# A file has hardly more bytes than the table in memory, and those of its schema and statistics.
_MAX_SIZE_RATIO = 1.1
_MAX_OVERHEAD_BYTES = 2**20
# File systems count time in coarse steps: a file may change again within one, with the same time.
_CLOCK_STEP_NS = 20_000_000

# What was verified in this process: the file and its identity -> its state then.
_verified: dict[tuple[str, str], tuple[int, ...]] = {}


def max_parquet_bytes(table: pa.Table) -> int:
    """Return what a file of a table takes at most, for the room that it needs.

    An estimate: columns of 8-bit numbers, of which tables here have few, may take more.
    """
    return int(table.nbytes * _MAX_SIZE_RATIO) + _MAX_OVERHEAD_BYTES


def write_parquet(table: pa.Table, path: Path, identity: str = "") -> None:
    """Write a table with its checksum, as a whole or not at all.

    Args:
        table: the content.
        path: the file.
        identity: what the file is, such as the name of a shard. It is part of the checksum, so that
            a file which took the place of another one is noticed.
    """
    metadata = dict(table.schema.metadata or {})
    metadata[CHECKSUM_KEY] = _UNSET
    described = table.replace_schema_metadata(metadata)
    with replacing_file(path) as temporary:
        pq.write_table(described, temporary)
        _seal(temporary, identity)


def read_parquet(
    path: Path, identity: str = "", *, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the content of a file that `write_parquet` wrote, memory-mapped.

    Args:
        path: the file.
        identity: what it was written as.
        columns: the columns to read; None: all.

    Raises:
        ValueError: the checksum is missing or wrong.
        Exception: of any other kind, if the file is not a Parquet file.
    """
    check_parquet(path, identity)
    wanted = None
    if columns is not None:
        wanted = list(columns)
    # As one file: a folder named like "label=3" would otherwise add a column to the table.
    table = pq.read_table(path, columns=wanted, memory_map=True, partitioning=None)
    return _without_checksum(table)


def read_n_rows(path: Path, identity: str = "") -> int:
    """Return the number of rows of a file that `write_parquet` wrote.

    Raises:
        ValueError: the checksum is missing or wrong.
        Exception: of any other kind, if the file is not a Parquet file.
    """
    check_parquet(path, identity)
    n_rows: int = pq.read_metadata(path).num_rows
    return n_rows


def check_parquet(path: Path, identity: str = "") -> None:
    """Check the checksum of a file, once per process unless the file changes.

    Raises:
        ValueError: the checksum is missing or wrong.
        OSError: the file cannot be read.
    """
    about = path.stat()
    state = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
    key = (str(path), identity)
    if _verified.get(key) == state:
        return
    if not _is_sealed(path, identity):
        raise ValueError("it has no checksum: an earlier version or another program wrote it")

    changed_ns = max(about.st_mtime_ns, about.st_ctime_ns)
    if time.time_ns() - changed_ns > _CLOCK_STEP_NS:
        _verified[key] = state


def read_own_or_foreign_parquet(path: Path) -> pa.Table:
    """Return the content of a file that `write_parquet` or another program wrote.

    The checksum of a file of another program is not expected: such a program drops the entry, or
    writes it with the value that it has before a file is sealed.

    Raises:
        ValueError: the file has a checksum, which is wrong.
        Exception: of any other kind, if the file is not a Parquet file.
    """
    _is_sealed(path, "")
    table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    return _without_checksum(table)


def _without_checksum(table: pa.Table) -> pa.Table:
    """Return a table without the metadata that `write_parquet` added."""
    metadata = dict(table.schema.metadata or {})
    metadata.pop(CHECKSUM_KEY, None)
    return table.replace_schema_metadata(metadata)


def _seal(path: Path, identity: str) -> None:
    """Put the checksum of a file in its place."""
    with open(path, "r+b") as file:
        position, unset = _checksum_entry(file)
        assert unset == _UNSET
        checksum = _checksum(file, position, identity)
        file.seek(position)
        file.write(checksum)


def _is_sealed(path: Path, identity: str) -> bool:
    """Return whether a file has a checksum.

    Raises:
        ValueError: it has one, which is wrong.
    """
    with open(path, "rb") as file:
        position, stored = _checksum_entry(file)
        if stored in (b"", _UNSET):
            return False
        if _checksum(file, position, identity) != stored:
            raise ValueError("its checksum is wrong")
    return True


def _checksum_entry(file: IO[bytes]) -> tuple[int, bytes]:
    """Return the position of the checksum in a file, and the checksum; empty if it has none.

    Raises:
        ValueError: the file is cut short, or a part of the entry is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    footer_bytes = int.from_bytes(tail[:4], "little")
    start = size - _TAIL_BYTES - footer_bytes
    if start < 0 or not tail.endswith(b"PAR1"):
        raise ValueError("its end is not that of a Parquet file")
    file.seek(start)
    footer = file.read(footer_bytes)

    entries = list(_ENTRY.finditer(footer))
    if entries:
        # Behind the statistics of the columns, which may contain anything.
        entry = entries[-1]
        return start + entry.start(1), entry.group(1)
    # Each table of ours has this name in more than one place, which damage does not hit at once.
    if b"pu_kd_pipeline" in footer:
        raise ValueError("its checksum is missing: it is damaged, or of an earlier version")
    return 0, b""


def _checksum(file: IO[bytes], position: int, identity: str) -> bytes:
    """Return the checksum of an identity and of all bytes of a file but those of the checksum."""
    checksum = zlib.crc32(identity.encode())
    file.seek(0)
    checksum = _crc32_of_next(file, position, checksum)
    file.seek(len(_UNSET), os.SEEK_CUR)
    checksum = _crc32_of_next(file, None, checksum)
    # Zero stands for a checksum that is not set.
    return b"crc32:%08x" % max(checksum, 1)


def _crc32_of_next(file: IO[bytes], n_bytes: int | None, checksum: int) -> int:
    """Return a checksum continued by the next bytes of a file; None: by all that are left."""
    while n_bytes is None or n_bytes > 0:
        size = _BLOCK_BYTES
        if n_bytes is not None:
            size = min(size, n_bytes)
        block = file.read(size)
        if not block:
            break
        checksum = zlib.crc32(block, checksum)
        if n_bytes is not None:
            n_bytes -= len(block)
    return checksum
