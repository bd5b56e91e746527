"""Images in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable, map_in_order
from pu_kd_pipeline.images.sources.base import listing_table
from pu_kd_pipeline.images.sources.files import (
    MAX_FILE_BYTES,
    READ_THREADS,
    check_file_unchanged,
    file_state,
    file_system,
    is_printable,
    path_state,
    printable,
    remote_version,
)

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource


EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class FolderSource:
    """Image files below a folder; the first folder under it names the class. Local, or any fsspec URL.

    Hidden files are left out. Links to files outside the folder and links to folders are listed with a fault.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        from fsspec.implementations.local import LocalFileSystem

        self._path = str(source.path)
        self._fs, self._root = file_system(self._path)
        self._is_local = isinstance(self._fs, LocalFileSystem)

    @staticmethod
    def state(source: ImageSource) -> str:
        return path_state(str(source.path))

    def listing(self) -> pd.DataFrame:
        if not self._fs.isdir(self._root):
            raise InputError(f"there is no folder {self._path}: correct `path` of the source")
        found = sorted(self._local_files() if self._is_local else self._remote_files())
        if not found:
            raise InputError(
                f"{self._path} holds no image: files ending in {', '.join(EXTENSIONS)} are looked for"
            )
        paths, versions, faults = zip(*found, strict=True)
        folders = [path.split("/")[0] if "/" in path else None for path in paths]
        return listing_table(
            paths, None, folders, versions, [fault or None for fault in faults], path=list(paths)
        )

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        return map_in_order(self._fetch, rows["path"].tolist(), READ_THREADS)

    def _fetch(self, path: str) -> bytes | Unusable:
        try:
            if self._is_local:
                return Path(self._root, path).read_bytes()
            return bytes(self._fs.cat_file(f"{self._root.rstrip('/')}/{path}"))
        except MemoryError:
            return Unusable(Reason.TOO_LARGE)
        except Exception as exc:  # each kind of remote file system has errors of its own
            if self._is_local:
                if not isinstance(exc, OSError):
                    raise
                check_file_unchanged(self._root, self._path)
            return Unusable(Reason.NOT_OPENED)

    def _local_files(self) -> Iterator[tuple[str, str, str]]:
        """Yield (path below the folder, version, fault or empty)."""
        root = Path(self._root)
        real_root = root.resolve()
        closed: list[OSError] = []
        for folder, subfolders, names in os.walk(
            root, onerror=closed.append
        ):  # which follows no link
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
            for name in links + [name for name in names if _is_image(name)]:
                path = Path(folder, name)
                relative = path.relative_to(root).as_posix()
                if not is_printable(relative):
                    yield printable(relative), "", Reason.NAME
                else:
                    version, fault = file_state(path, real_root)
                    yield relative, version, fault
        for error in closed:
            yield printable(os.path.relpath(error.filename, root)), "", Reason.NOT_OPENED

    def _remote_files(self) -> Iterator[tuple[str, str, str]]:
        root = self._fs._strip_protocol(self._root).rstrip("/")
        for path, about in self._fs.find(root, detail=True).items():
            relative = path.removeprefix(root).lstrip("/")
            if _is_image(relative) and not any(
                part.startswith(".") for part in relative.split("/")
            ):
                is_too_large = (about.get("size") or 0) > MAX_FILE_BYTES
                yield relative, remote_version(about), Reason.TOO_LARGE if is_too_large else ""


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
