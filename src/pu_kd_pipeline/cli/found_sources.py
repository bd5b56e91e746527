"""Image sources from the paths that a user gives: their type, and how a path is written.

Types are those of `params.data_ingestion.SOURCE_TYPES`; of what this version cannot read, a message
says so.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.file_kinds import EXTENSIONS
from pu_kd_pipeline.images.sources.files import has_wildcard, local_matches
from pu_kd_pipeline.masking import without_credentials
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES
from pu_kd_pipeline.params.paths import is_url

# What a file is by its name; images lie in folders.
_TYPES_BY_EXTENSION = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".csv": "list",
    ".tsv": "list",
}
_PARQUET_MAGIC = b"PAR1"
_IMAGE = "folder"
_MAX_FILES = 20_000  # of a folder, that are looked at to find out what it holds
_MAX_NAMED = 5


class GivenPaths:
    """Reads paths as a shell does, and writes them as parameters do.

    Args:
        project: where relative paths in parameters start.
        working: where relative paths on the command line start.
    """

    def __init__(self, project: Path, working: Path) -> None:
        self.project = project
        self._working = working

    def absolute(self, given: str) -> Path:
        """Return the path that was meant; it may be a pattern, and need not exist.

        A path that exists only below the project is one, too, because the guide shows those.
        """
        expanded = Path(given).expanduser()
        here = Path(os.path.abspath(self._working / expanded))
        in_project = Path(os.path.abspath(self.project / expanded))
        if not _exists(here) and _exists(in_project):
            return in_project
        return here

    def written(self, path: Path) -> str:
        """Return a path as a parameter: relative to the project if it is inside of it."""
        if path.is_relative_to(self.project):
            return path.relative_to(self.project).as_posix()
        return str(path)


def _exists(path: Path) -> bool:
    return os.path.lexists(path) or bool(has_wildcard(str(path)) and local_matches(str(path)))


def find_source(given: str, option: str, paths: GivenPaths) -> dict[str, Any]:
    """Return `type` and `path` of the source that a path or URL stands for.

    Args:
        given: folder, file, pattern or URL.
        option: that gave it, for messages.
        paths: how paths are read and written.

    Raises:
        InputError: there is nothing, or nothing that can be read.
    """
    if is_url(given):
        if without_credentials(given) != given:
            raise InputError(
                f"{option}: the URL {without_credentials(given)} has credentials, which do not "
                "belong into a configuration file: use the environment variables or profiles of "
                "its file system"
            )
        name = PurePosixPath(given).suffix.lower()
        return _source(_TYPES_BY_EXTENSION.get(name, _IMAGE), given, option)
    path = paths.absolute(given)
    if path.is_dir():
        source_type, inner = _look_into_folder(path, option)
        return _source(source_type, paths.written(path / inner), option)
    matches = local_matches(str(path))
    if not matches or not os.path.lexists(matches[0]):
        raise InputError(f"{option}: there is no file or folder {given} (looked for {path})")
    types = {_type_of_file(Path(match), option) for match in matches}
    if len(types) > 1:
        raise InputError(
            f"{option}: {given} matches files of several kinds ({', '.join(sorted(types))}): give "
            "the option once for each kind"
        )
    return _source(types.pop(), paths.written(path), option)


def _source(source_type: str, path: str, option: str) -> dict[str, Any]:
    if source_type not in SOURCE_TYPES:
        known = ", ".join(SOURCE_TYPES)
        raise InputError(
            f"{option}: {path} would be a source of type {source_type!r}, which this version "
            f"cannot read (it knows {known})"
        )
    return {"type": source_type, "path": path}


def _type_of_file(path: Path, option: str) -> str:
    extension = path.suffix.lower()
    if path.is_dir():
        raise InputError(
            f"{option}: the pattern matches the folder {path}: name files, or it alone"
        )
    if extension in _TYPES_BY_EXTENSION:
        return _TYPES_BY_EXTENSION[extension]
    try:
        with path.open("rb") as file:
            start = file.read(len(_PARQUET_MAGIC))
    except OSError as exc:
        raise InputError(f"{option}: {path} cannot be read ({exc.strerror})") from exc
    if start == _PARQUET_MAGIC:
        return "parquet"
    if extension in EXTENSIONS:
        raise InputError(f"{option}: {path} is a single image: give the folder that holds it")
    raise InputError(
        f"{option}: {path} is neither a folder of images nor a file with images: known are "
        f"{', '.join(_TYPES_BY_EXTENSION)}; unpack an archive first"
    )


def _look_into_folder(folder: Path, option: str) -> tuple[str, str]:
    """Return the type of source that a folder is, and the pattern of its files; empty: all."""
    counts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    is_nested: dict[str, bool] = {}
    for path in _files_below(folder):
        extension = path.suffix.lower()
        if extension in EXTENSIONS:
            counts[_IMAGE] += 1
        elif extension in (".parquet", ".tar"):
            source_type = _TYPES_BY_EXTENSION[extension]
            counts[source_type] += 1
            is_nested[extension] = is_nested.get(extension, False) or path.parent != folder
        else:
            others[extension or "without extension"] += 1
    if len(counts) > 1:
        found = ", ".join(f"{n:,} of type {name}" for name, n in counts.most_common())
        raise InputError(
            f"{option}: {folder} holds files of several kinds ({found}): give the option once for "
            "each, with a folder or a pattern such as folder/*.parquet"
        )
    if not counts:
        found = ", ".join(f"{name} ({n:,})" for name, n in others.most_common(_MAX_NAMED))
        raise InputError(
            f"{option}: {folder} holds no images: files ending in {', '.join(EXTENSIONS)}, "
            f".parquet or .tar are looked for; found: {found or 'nothing'}"
        )
    [source_type] = counts
    if source_type == _IMAGE:
        return _IMAGE, ""
    [extension] = is_nested
    if is_nested[extension]:
        return source_type, f"**/*{extension}"
    return source_type, f"*{extension}"


def _files_below(folder: Path) -> list[Path]:
    """Return the first files of a folder and those below it, without hidden ones."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(files) if not name.startswith(".")]
        if len(found) >= _MAX_FILES:
            break
    return found[:_MAX_FILES]


def with_names(sources: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """Return sources with names, so that no two images of the project have the same id."""
    if len(sources) == 1:
        return [{**sources[0], "name": part}]
    return [{**source, "name": f"{part}{number}"} for number, source in enumerate(sources, 1)]
