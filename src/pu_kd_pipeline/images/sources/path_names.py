"""What is read from the paths of a source's files: distinct names, and Hive's partitions."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_names import listed, whole_number
from pu_kd_pipeline.masking import without_credentials

_NULL = "__HIVE_DEFAULT_PARTITION__"
_MAX_FOLDERS = 200  # that are searched for a hint; each costs a request
# One partition -> column of the images
Partition = dict[str, str | None]


def distinct_names(paths: Sequence[str], base: str) -> list[str]:
    """Return a name for each file: its stem, or its path below `base` where another one has it.

    Credentials are left out: they are no part of a name, and change.
    """
    visible = [without_credentials(path) for path in paths]
    stems = [PurePosixPath(path).stem for path in visible]
    counts = Counter(stems)
    visible_base = without_credentials(base).rstrip("/")
    names = []
    for path, stem in zip(visible, stems, strict=True):
        name = stem
        if counts[stem] > 1:
            below = path.removeprefix(visible_base)
            name = below.replace(os.sep, "/").lstrip("/")
        names.append(name)
    return names


def is_partition_folder(name: str) -> bool:
    """Return whether a folder is called `column=value`, as Hive and Spark do."""
    key, equals, _ = name.partition("=")
    if not key or not equals:
        return False
    is_hidden = key.startswith((".", "_"))
    return not is_hidden


def partition_folders(root: str) -> Iterator[str]:
    """Yield a local folder and the partitions below it, in order."""
    for folder, subfolders, _ in os.walk(root):
        subfolders[:] = sorted(filter(is_partition_folder, subfolders))
        yield folder


def remote_partition_folders(system: Any, root: str) -> Iterator[str]:
    """Yield a folder of a file system of fsspec and the partitions below it."""
    yield root
    for about in system.ls(root, detail=True):
        path = str(about["name"]).rstrip("/")
        name = PurePosixPath(path).name
        if about.get("type") == "directory" and is_partition_folder(name):
            yield from remote_partition_folders(system, path)


def partition_of(path: str, base: str) -> Partition:
    """Return column -> value of the partition folders directly above a file.

    Values are decoded as URLs, as Spark encodes them; None where the value is missing.

    Args:
        path: of the file.
        base: folder of the source, or the file itself. Its own name and the folders above it are
            no partitions: `runs/label=smooth` may be the run of an experiment.
    """
    partition: Partition = {}
    below = path.removeprefix(base).replace(os.sep, "/")
    for folder in reversed(PurePosixPath(below).parts[:-1]):
        if not is_partition_folder(folder):
            break
        key, _, encoded = folder.partition("=")
        value = None
        if encoded != _NULL:
            value = _decoded(encoded)
        # The innermost one counts.
        partition.setdefault(_decoded(key), value)
    return partition


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def label_partitions(
    paths: Sequence[str], base: str, columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return `label` and `label_name` of each file, as far as its partition has them.

    Labels are numbers if all of the source are: folder names have no types.

    Args:
        paths: of the files.
        base: see `partition_of`.
        columns: `label` and `label_name` -> key of the partition.
    """
    partitions = [partition_of(path, base) for path in paths]
    found: list[dict[str, Any]] = [{} for _ in paths]
    for role, column in columns.items():
        are_numbers = role == "label" and _are_whole_numbers(partitions, column)
        for partition, labels in zip(partitions, found, strict=True):
            if column not in partition:
                continue
            value = partition[column] or None
            labels[role] = value
            if are_numbers and value is not None:
                labels[role] = whole_number(value)
    return found


def _are_whole_numbers(partitions: Sequence[Partition], column: str) -> bool:
    """Return whether all values of a column that are not missing are whole numbers."""
    for partition in partitions:
        value = partition.get(column)
        if value and whole_number(value) is None:
            return False
    return True


def with_partition(
    values: Mapping[str, list[Any]], partition: Mapping[str, Any], n_rows: int, file: str
) -> dict[str, list[Any]]:
    """Return the columns of a file and of its partition.

    Raises:
        InputError: the file has such a column with another value.
    """
    merged = dict(values)
    for role, value in partition.items():
        column = merged.setdefault(role, [value] * n_rows)
        if value is None:
            continue
        for row, own in enumerate(column):
            if own is not None and str(own) != str(value):
                raise InputError(
                    f"{file}, row {row}: the {role} is {value!r} in its folder's name, and "
                    f"{own!r} in its column: correct one of them, or rename the column"
                )
        merged[role] = [value] * n_rows
    return merged


def no_file_message(path: str, root: str, system: Any) -> str:
    """Return the message that there is no Parquet file at a path, with what is below it."""
    problem = f"there is no Parquet file at {path}"
    fix = "correct `path` of the source"
    if system.isdir(root):
        problem = f"there is no Parquet file directly in {path}"
        fix = hint_of_folders(path, root, system, (".parquet",)) or fix
    return f"{problem}: {fix}"


def hint_of_folders(path: str, root: str, system: Any, extensions: Sequence[str]) -> str:
    """Return which folders below a folder have files, and the pattern for them; empty if none has.

    Only a limited number of folders is looked at.

    Args:
        path: of the folder, as the source names it.
        root: the folder in its file system.
        system: file system of fsspec.
        extensions: in lower case, of the files.
    """
    folders = []
    found = ""
    for folder, names in _folders_below(system, root):
        written = [_written_extension(name, extensions) for name in names]
        if any(written):
            folders.append(folder)
            found = found or max(written)
    if not folders:
        return ""
    is_deep = any("/" in folder for folder in folders)
    pattern = with_pattern(path, f"{'**' if is_deep else '*'}/*{found}")
    return f"there are some in its folders {listed(sorted(folders))}: write `{pattern}`"


def _written_extension(name: str, extensions: Sequence[str]) -> str:
    """Return the one of some extensions that a visible file has, in its own case; "" if none."""
    if not name.startswith("."):
        for extension in extensions:
            if name.lower().endswith(extension):
                return name[-len(extension) :]
    return ""


def _folders_below(system: Any, root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield folders below a folder, by their path there, with the names of their files.

    The nearest come first. Hidden ones are left out, and links, which `**` does not follow.
    """
    waiting = deque([(root, "")])
    for _ in range(_MAX_FOLDERS):
        if not waiting:
            return
        location, folder = waiting.popleft()
        try:
            entries = system.ls(location, detail=True)
        # Each kind of file system has errors of its own, and this is only for a hint.
        except Exception:
            continue
        names = []
        for about in entries:
            below = str(about["name"])
            name = PurePosixPath(below).name
            if about.get("type") != "directory":
                names.append(name)
            elif not name.startswith(".") and not about.get("islink"):
                waiting.append((below, f"{folder}/{name}".lstrip("/")))
        if folder:
            yield folder, names


def with_pattern(path: str, pattern: str) -> str:
    """Return a path or URL of a folder with a pattern below it.

    In a chain such as `zip://::a.zip` or `simplecache::s3://a`, the folder is in the first link
    that has an address.
    """
    links = path.split("::")
    position = len(links) - 1
    for number, link in enumerate(links):
        if "://" in link:
            position = number
            break
    folder = links[position]
    slash = "" if folder.endswith("/") else "/"
    links[position] = f"{folder}{slash}{pattern}"
    return "::".join(links)
