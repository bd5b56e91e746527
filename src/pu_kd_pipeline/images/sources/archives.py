"""File systems of fsspec that read from archives, such as `tar://` and `zip://`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pu_kd_pipeline.images.sources.files import file_state, is_local, remote_version


def reads_one_file_at_a_time(system: Any) -> bool:
    """Return whether threads that read at the same time would get each other's bytes.

    All files of an archive are read from one open file, which has one position: a thread that moves
    it changes what another thread reads next. The file systems of FTP share one connection. This
    includes file systems that read from such a one, such as caches.
    """
    for layer in _layers(system):
        if _open_file_of(layer) is not None or _protocol_of(layer) == "ftp":
            return True
    return False


def why_not_shared(system: Any) -> str | None:
    """Return why other processes should not read files of a file system, or None: they may."""
    if reads_one_file_at_a_time(system):
        return "its files are read one after the other, from an archive or by FTP"
    for layer in _layers(system):
        if _protocol_of(layer) == "memory":
            return "it is in the memory of this process"
    return None


def archive_version(system: Any) -> str:
    """Return a text that changes when an archive does; empty for other file systems.

    Times and sizes of the files in an archive are those that its writer chose: many writers set one
    time for all. The version of the archive itself is therefore part of the version of each file.
    """
    versions = []
    for layer in _layers(system):
        if _open_file_of(layer) is None:
            continue
        opened: Any = getattr(layer, "of", None)
        outer = getattr(opened, "fs", None)
        if outer is None:
            continue
        if is_local(outer):
            version, _ = file_state(opened.path)
        else:
            about = outer.info(opened.path)
            version = remote_version(about)
        versions.append(f"{version}/")
    return "".join(versions)


def _layers(system: Any) -> Iterator[Any]:
    """Yield a file system and those that it reads from, the outermost first."""
    n_layers = 0
    while system is not None and n_layers < 20:  # no chain is as long
        yield system
        n_layers += 1
        # Caches and prefixes have the next one as `fs`, archives the file in it that they opened.
        following = getattr(system, "fs", None)
        if following is None:
            opened = getattr(system, "of", None)
            following = getattr(opened, "fs", None)
        system = following


def _open_file_of(system: Any) -> Any:
    """Return the open file that a file system reads all its files from, or None.

    The archives of fsspec, and of packages that extend it, have it as `fo`.
    """
    if getattr(system, "fs", None) is not None:
        return None  # a cache passes on the attributes of what it caches
    opened = getattr(system, "fo", None)
    if hasattr(opened, "seek"):
        return opened
    return None


def _protocol_of(system: Any) -> str:
    protocol = getattr(system, "protocol", "")
    if isinstance(protocol, tuple | list):
        return str(protocol[0])
    return str(protocol)
