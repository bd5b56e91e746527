"""What is read from the paths of a source's files: distinct names, and Hive's partitions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_names import listed, whole_number
from pu_kd_pipeline.masking import without_credentials

_NULL = "__HIVE_DEFAULT_PARTITION__"
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
    return bool(key and equals) and not key.startswith((".", "_"))


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
        if about.get("type") == "directory" and is_partition_folder(PurePosixPath(path).name):
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
        key, _, value = folder.partition("=")
        # The innermost one counts.
        partition.setdefault(_decoded(key), None if value == _NULL else _decoded(value))
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
        values = [partition[column] for partition in partitions if column in partition]
        known = [value for value in values if value]
        are_numbers = role == "label" and all(whole_number(value) is not None for value in known)
        for partition, labels in zip(partitions, found, strict=True):
            if column not in partition:
                continue
            value = partition[column] or None
            labels[role] = value
            if are_numbers and value is not None:
                labels[role] = whole_number(value)
    return found


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
        folder = root.rstrip("/")
        problem = f"there is no Parquet file directly in {path}"
        below = system.glob(f"{folder}/*/*.parquet")
        if below:
            folders = sorted({PurePosixPath(file).parent.name for file in below})
            pattern = with_pattern(path, "*/*.parquet")
            fix = f"there are some in its folders {listed(folders)}: write `{pattern}`"
    return f"{problem}: {fix}"


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
