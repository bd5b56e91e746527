"""Image sources from the paths that a user gives: their type, and how a path is written."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.file_kinds import EXTENSIONS as IMAGE_EXTENSIONS
from pu_kd_pipeline.images.sources.files import expanded_ranges, local_matches
from pu_kd_pipeline.images.sources.webdataset import SHARD_EXTENSIONS
from pu_kd_pipeline.masking import without_credentials
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES
from pu_kd_pipeline.params.paths import is_url

_FOLDER = "folder"
_LIST = "list"
# Type of source -> how the names of its files end; images lie in folders.
_ENDINGS = {
    "parquet": (".parquet",),
    "webdataset": SHARD_EXTENSIONS,
    _LIST: (".csv", ".tsv"),
}
_PARQUET_MAGIC = b"PAR1"
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

        Raises:
            InputError: it starts with `~user`, and there is no such user.
        """
        try:
            expanded = Path(given).expanduser()
        except RuntimeError as exc:
            raise InputError(f"{given!r} is not a path ({exc}): write the folder itself") from exc
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
    return os.path.lexists(path) or bool(_matches(path))


def _matches(path: Path) -> list[str]:
    """Return the files and folders that a path, pattern or range stands for, and that exist."""
    found = []
    for pattern in expanded_ranges(str(path)):
        found += local_matches(pattern)
    return [match for match in found if os.path.lexists(match)]


def find_source(given: str, option: str, paths: GivenPaths) -> dict[str, Any]:
    """Return `type` and `path` of the source that a path or URL stands for.

    Args:
        given: folder, file, pattern, range or URL.
        option: that gave it, for messages.
        paths: how paths are read and written.

    Raises:
        InputError: there is nothing, or nothing that can be read.
    """
    if is_url(given):
        return _remote_source(given, option)
    path = paths.absolute(given)
    if os.path.isdir(path):  # False for a name that is too long
        source_type, pattern = _look_into_folder(path, option)
        return {"type": source_type, "path": paths.written(path / pattern)}
    matches = _matches(path)
    if not matches:
        raise InputError(f"{option}: there is no file or folder {given} (looked for {path})")
    types = {_type_of_file(Path(match), option) for match in matches}
    if len(types) > 1:
        raise InputError(
            f"{option}: {given} matches files of several kinds ({', '.join(sorted(types))}): give "
            "the option once for each kind"
        )
    [source_type] = types
    # Its path is that of one file.
    if SOURCE_TYPES[source_type].path_kind == "file":
        if len(matches) > 1:
            raise InputError(
                f"{option}: {given} matches {len(matches)} files of type {source_type}: give the "
                "option once for each file"
            )
        path = Path(matches[0])
    return {"type": source_type, "path": paths.written(path)}


def _remote_source(url: str, option: str) -> dict[str, Any]:
    """Return the source of a URL by its name; nothing is opened."""
    if without_credentials(url) != url:
        raise InputError(
            f"{option}: the URL {without_credentials(url)} has credentials, which do not belong "
            "into a configuration file: use the environment variables or profiles of its file "
            "system"
        )
    source_type = _type_of_name(_name_in_url(url)) or _FOLDER
    return {"type": source_type, "path": url}


def _name_in_url(url: str) -> str:
    """Return the name of the file or folder that a URL of fsspec names.

    In a chain, `tar://photos::a.tar` is the folder `photos` in an archive; a part without an
    address, as in `simplecache::s3://bucket/a.tar`, only says how the next one is read.
    """
    parts = url.split("::")
    addresses = [part for part in parts if "://" in part]
    address = addresses[0] if addresses else parts[-1]
    if address.startswith(("http://", "https://")):
        address, _, _ = address.partition("?")
    _, _, path = address.partition("://")
    return PurePosixPath(path).name


def _type_of_name(name: str) -> str | None:
    """Return the type of source that a file is by the end of its name, if that says so."""
    for source_type, endings in _ENDINGS.items():
        if name.lower().endswith(endings):
            return source_type
    return None


def _ending_of_name(name: str) -> str:
    """Return the known end of a name, as it is written."""
    for endings in _ENDINGS.values():
        for ending in endings:
            if name.lower().endswith(ending):
                return name[-len(ending) :]
    return ""


def _type_of_file(path: Path, option: str) -> str:
    if path.is_dir():
        raise InputError(
            f"{option}: the pattern matches the folder {path}: name files, or it alone"
        )
    source_type = _type_of_name(path.name)
    if source_type is not None:
        return source_type
    try:
        with path.open("rb") as file:
            start = file.read(len(_PARQUET_MAGIC))
    except OSError as exc:
        raise InputError(f"{option}: {path} cannot be read ({exc.strerror})") from exc
    if start == _PARQUET_MAGIC:
        return "parquet"
    if path.name.lower().endswith(IMAGE_EXTENSIONS):
        raise InputError(f"{option}: {path} is a single image: give the folder that holds it")
    raise InputError(
        f"{option}: {path} is neither a folder of images nor a file with images: known are "
        f"{_known_endings()}; unpack other archives first"
    )


def _known_endings() -> str:
    endings: list[str] = []
    for of_type in _ENDINGS.values():
        endings += of_type
    return ", ".join(endings)


# --- folders --------------------------------------------------------------------------------------


def _look_into_folder(folder: Path, option: str) -> tuple[str, str]:
    """Return the type of source that a folder is, and the pattern of its files; empty: all."""
    files_by_type: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    for path in _files_below(folder):
        source_type = _type_of_name(path.name)
        if path.name.lower().endswith(IMAGE_EXTENSIONS):
            source_type = _FOLDER
        # A list next to images may be about anything.
        if source_type in (None, _LIST):
            others[path.suffix.lower() or "without extension"] += 1
        else:
            files_by_type.setdefault(source_type, []).append(path)

    if len(files_by_type) > 1:
        counts = []
        for name in sorted(files_by_type):
            counts.append(f"{len(files_by_type[name]):,} of type {name}")
        raise InputError(
            f"{option}: {folder} holds files of several kinds ({', '.join(counts)}): give the "
            "option once for each, with a folder or a pattern such as folder/*.parquet"
        )
    if not files_by_type:
        found = ", ".join(f"{name} ({n:,})" for name, n in others.most_common(_MAX_NAMED))
        raise InputError(
            f"{option}: {folder} holds no images: files ending in {', '.join(IMAGE_EXTENSIONS)}, "
            f".parquet or .tar are looked for; found: {found or 'nothing'}. Give a list of images "
            "(.csv, .tsv) by its own name"
        )
    [(source_type, files)] = files_by_type.items()
    if source_type == _FOLDER:
        return _FOLDER, ""
    return source_type, _pattern(files, folder, option)


def _pattern(files: list[Path], folder: Path, option: str) -> str:
    """Return the pattern of files of one type below a folder; empty: its reader finds them."""
    endings = {_ending_of_name(path.name) for path in files}
    is_nested = any(path.parent != folder for path in files)
    is_usual = all(ending.islower() for ending in endings)
    if not is_nested and is_usual:
        return ""
    if len(endings) > 1:
        raise InputError(
            f"{option}: {folder} holds files that end in {', '.join(sorted(endings))}: give the "
            "option once for each, with a pattern such as folder/**/*.tar"
        )
    [ending] = endings
    if is_nested:
        return f"**/*{ending}"
    return f"*{ending}"


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
