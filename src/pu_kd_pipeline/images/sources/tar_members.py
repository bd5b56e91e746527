"""The members of tar archives, read once from beginning to end, whatever the archive holds.

A member is an entry with a name, a position and a size. Nothing is unpacked to disk, headers have a
limited size, and an archive that is cut short or damaged anywhere is an error.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

_BLOCK_BYTES = 512
# Holds the longest names that tar writes. tarfile reads as much as a header asks for.
_MAX_HEADER_BYTES = 2**20
_SKIP_BYTES = 2**20
# How compressed files begin -> what fsspec calls the compression
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_LONGEST_MARK = 6
_PACKAGES = {"zstd": "zstandard", "lz4": "lz4"}
_MAX_LINKS = 40


class DamagedArchiveError(Exception):
    """An archive is cut short, damaged, or none."""


class Member(NamedTuple):
    """A file in an archive, or a link to one.

    Attributes:
        name: as it is in the archive, without `./` at its beginning.
        offset: position of its content in the archive, after decompression.
        size: bytes of its content.
        target: name of the member that a link leads to; None for a file.
        is_sparse: its content is stored in parts.
    """

    name: str
    offset: int
    size: int
    target: str | None
    is_sparse: bool


class ForwardStream:
    """A file that is read from beginning to end, with the methods that tarfile calls."""

    def __init__(self, opened: Any, can_seek: bool) -> None:
        self._opened = opened
        self.can_seek = can_seek
        self._position = 0
        self._is_after_end_mark = False
        self.is_regular_end = False

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Move forward.

        Raises:
            DamagedArchiveError: the position was passed, as with negative sizes in a header.
        """
        if position < self._position:
            raise DamagedArchiveError("one of its headers points backwards")
        if position == self._position:
            return
        if self.can_seek:
            self._opened.seek(position)
            self._position = position
            return
        while self._position < position:
            wanted = min(_SKIP_BYTES, position - self._position)
            skipped = len(self._opened.read(wanted))
            if skipped == 0:
                return  # the next read finds nothing either
            self._position += skipped

    def read(self, n_bytes: int) -> bytes:
        """Return a part of a header; less at the end of the file.

        Raises:
            DamagedArchiveError: a header asks for more than any header has.
        """
        if not 0 <= n_bytes <= _MAX_HEADER_BYTES:
            raise DamagedArchiveError(f"one of its headers declares {n_bytes:,} bytes")
        content = self._read(n_bytes)
        # Two blocks of zeros end an archive; some writers write one, and others many.
        is_zero = not content.strip(b"\0")
        is_end_mark = is_zero and len(content) == _BLOCK_BYTES
        self.is_regular_end = is_end_mark or (is_zero and self._is_after_end_mark)
        is_at_end = not content and self._is_after_end_mark
        self._is_after_end_mark = is_end_mark or is_at_end
        return content

    def content_of(self, member: Member) -> bytes:
        """Return the content of a member behind the current position.

        Raises:
            DamagedArchiveError: it is not there in full.
        """
        self.seek(member.offset)
        content = self._read(member.size)
        if len(content) != member.size:
            raise DamagedArchiveError(f"it ends within {member.name!r}")
        return content

    def _read(self, n_bytes: int) -> bytes:
        """Return the next bytes, less only at the end; a single call may return less anywhere."""
        parts = []
        n_missing = n_bytes
        while n_missing > 0:
            part = self._opened.read(n_missing)
            if not part:
                break
            parts.append(part)
            n_missing -= len(part)
        content = b"".join(parts)
        self._position += len(content)
        return content


class _StrictTarInfo(tarfile.TarInfo):
    """A header of a member; one that is no header ends the archive only where it may end.

    tarfile by itself takes damage behind the first member for the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as exc:
            if archive.fileobj.is_regular_end:
                raise
            raise DamagedArchiveError(str(exc)) from exc


@contextmanager
def open_archive(system: Any, path: str) -> Iterator[ForwardStream]:
    """Open a tar archive on a file system of fsspec; it may be compressed, whatever its name.

    Raises:
        DamagedArchiveError: no package is installed that decompresses it.
    """
    opened = system.open(path, "rb")
    with closing(opened):
        compression = _compression_of(opened)
        try:
            opened.seek(0)
        except Exception:  # servers that send a file only as a whole; each has errors of its own
            opened.close()
            opened = system.open(path, "rb")
        with closing(opened):
            if compression is None:
                yield ForwardStream(opened, can_seek=_can_seek(opened))
                return
            with closing(_decompressed(opened, compression)) as decompressed:
                # Decompressors seek by reading.
                yield ForwardStream(decompressed, can_seek=False)


def members(stream: ForwardStream) -> Iterator[Member]:
    """Yield the files and links of an archive, in its order; contents may be read in between.

    Archives that were appended to each other are read as one.

    Raises:
        DamagedArchiveError: it is cut short, damaged, or no archive.
    """
    try:
        yield from _members(stream)
    except DamagedArchiveError:
        raise
    # Damage makes tarfile and the decompressors raise nearly anything.
    except Exception as exc:
        raise DamagedArchiveError(f"{type(exc).__name__}: {exc}") from exc


def _members(stream: ForwardStream) -> Iterator[Member]:
    fileobj: Any = stream
    archive = tarfile.TarFile(
        fileobj=fileobj, tarinfo=_StrictTarInfo, ignore_zeros=True, encoding="utf-8"
    )
    collected: list[Any] = vars(archive)["members"]
    while (header := archive.next()) is not None:
        collected.clear()  # else tarfile keeps all headers in memory
        if not (header.isfile() or header.islnk() or header.issym()):
            continue
        name = _plain(header.name)
        target = None
        if header.islnk():
            target = _plain(header.linkname)
        elif header.issym():
            folder = posixpath.dirname(name)
            target = posixpath.normpath(posixpath.join(folder, header.linkname))
        yield Member(name, header.offset_data, header.size, target, header.issparse())


def followed(member: Member, by_name: dict[str, Member]) -> Member | None:
    """Return the file that a member is or leads to; None if that is not in the archive."""
    for _ in range(_MAX_LINKS):
        if member.target is None:
            return member
        following = by_name.get(member.target)
        if following is None:
            return None
        member = following
    return None  # links in a circle


def _plain(name: str) -> str:
    """Return a name without `./` at its beginning, which `tar cf a.tar ./folder` writes."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _compression_of(opened: Any) -> str | None:
    beginning = opened.read(_LONGEST_MARK)
    for mark, compression in _COMPRESSIONS.items():
        if beginning.startswith(mark):
            return compression
    return None


def _decompressed(opened: Any, compression: str) -> Any:
    from fsspec.compression import compr

    if compression not in compr:
        package = _PACKAGES.get(compression, compression)
        raise DamagedArchiveError(
            f"it is compressed with {compression}: install the package {package} with pip in the "
            "environment of this project, or decompress it"
        )
    return compr[compression](opened)


def _can_seek(opened: Any) -> bool:
    """Return whether a file can be moved in; some files of servers only claim that."""
    try:
        opened.seek(1)
        opened.seek(0)
    except Exception:  # each kind of file system has errors of its own
        return False
    return True
