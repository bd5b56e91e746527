"""Image files that a user names by a folder, a file, or a pattern.

Nothing is opened before it is read, except files of a folder without an extension, whose first
bytes show whether they are images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable, map_in_order
from pu_kd_pipeline.images.sources.files import (
    READ_THREADS,
    SourceFile,
    expanded_ranges,
    file_state,
    is_printable,
    local_matches,
    printable,
    read_file,
    state_of,
)
from pu_kd_pipeline.images.sources.folder import FolderSource
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.paths import is_url, resolved_path


@dataclass(frozen=True)
class FoundFiles:
    """Image files, in order.

    Attributes:
        root: the folder that their paths are relative to.
        files: path, version, and why it cannot be used or "".
    """

    root: str
    files: Sequence[SourceFile]

    def __len__(self) -> int:
        return len(self.files)

    def read(self) -> Iterator[bytes | Unusable]:
        """Yield the content of each file, or why it cannot be read."""
        return map_in_order(self._read_file, self.files, READ_THREADS)

    def _read_file(self, file: SourceFile) -> bytes | Unusable:
        if file.fault:
            return Unusable(Reason(file.fault))
        return read_file(os.path.join(self.root, file.path), self.root)


def find_files(text: str, parameter: str) -> FoundFiles:
    """Return the images below a folder, one file, or those that a pattern matches.

    Of a folder these are the files whose name or content is that of an image. What is named by
    itself or by a pattern is taken for an image, whatever its name.

    Args:
        text: the folder, file or pattern; the last one may have `*`, `**`, `?`, `[...]`, `{a,b}`.
        parameter: that names it, for messages.

    Raises:
        InputError: there is no such file, or no image.
    """
    if is_url(text):
        raise InputError(f"{parameter}: {text} is not on this machine: name a folder or file here")
    path = str(resolved_path(text))
    if os.path.isdir(path):
        return _files_of_folder(text, path, parameter)
    matches = []
    for each in expanded_ranges(path):
        matches += [match for match in local_matches(each) if not os.path.isdir(match)]
    existing = [match for match in matches if os.path.lexists(match)]
    if not existing:
        raise InputError(
            f"{parameter}: there is no {text}: name a folder, a file, or a pattern such as "
            "`photos/**/*.jpg`; relative paths start at the project folder"
        )
    root = os.path.dirname(existing[0])
    if len(existing) > 1:
        root = os.path.commonpath([os.path.dirname(match) for match in existing])
    files = []
    for match in existing:
        name = os.path.relpath(match, root)
        if not is_printable(name):
            files.append(SourceFile(printable(name), "", Reason.NAME))
            continue
        version, fault = file_state(match)
        files.append(SourceFile(name, version, fault))
    return FoundFiles(root, files)


def _files_of_folder(text: str, path: str, parameter: str) -> FoundFiles:
    source = FolderSource(ImageSource(type="folder", path=path), seed=0)
    try:
        listing = source.listing()
    except InputError as exc:
        message = str(exc).replace(path, text)
        raise InputError(f"{parameter}: {message}") from exc
    columns = (listing["path"], listing["version"], listing["fault"])
    files = []
    for name, version, fault in zip(*columns, strict=True):
        # pandas has None or NaN for a file without a fault.
        files.append(SourceFile(name, version, fault if isinstance(fault, str) else ""))
    return FoundFiles(path, files)


def files_state(text: str) -> str:
    """Return a digest that changes when the files that `find_files` returns do."""
    return state_of(lambda: find_files(text, "images").files)
