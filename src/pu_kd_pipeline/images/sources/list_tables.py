"""Lists of image files: tables in CSV, TSV or Parquet files, with a path per row and labels."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_names import listed, whole_number
from pu_kd_pipeline.images.sources.parquet_columns import read_columns
from pu_kd_pipeline.images.sources.parquet_labels import class_label_names, labels_of_columns

# What a list has columns for; those but the first may be missing.
ROLES = ("path", "id", "label", "label_name")
_PARQUET_MARK = b"PAR1"
_SEPARATORS = ",\t;|"
# UTF-32 first: its mark begins with that of UTF-16.
_MARKED_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Paths differ from row to row, so that they take space in whatever encoding.
_MAX_ROWS_PER_BYTE = 100


@dataclass(frozen=True)
class ListTable:
    """The rows of a list of image files.

    Attributes:
        paths: one per row, as they are written.
        ids: one per row, or None for those without; None if the list has no such column.
        labels: class number per row; None if there are none.
        label_names: class name per row; None if there are none.
        has_labels: whether the list has a column of labels, numbers or names.
    """

    paths: list[str]
    ids: list[Any] | None
    labels: list[Any] | None
    label_names: list[Any] | None
    has_labels: bool


def read_list(
    content: bytes,
    file: str,
    columns: Mapping[str, str],
    separator: str | None = None,
    encoding: str | None = None,
) -> ListTable:
    """Return the rows of a list.

    Args:
        content: of the file.
        file: its name, for messages.
        columns: role (`path`, `id`, `label`, `label_name`) -> name of the column, where it has
            another name than its role.
        separator: between the fields of a text file; None: the one that the header has.
        encoding: of a text file; None: by its byte order mark, or else UTF-8.

    Raises:
        InputError: it is no such file, or a column is missing.
    """
    class_names = None
    if content.startswith(_PARQUET_MARK):
        if separator is not None or encoding is not None:
            raise InputError(f"{file} is a Parquet file: remove `separator` and `encoding`")
        values, class_names = _parquet_columns(content, file, columns)
    else:
        text = _decoded(content, file, encoding)
        values = _text_columns(text, file, columns, separator)

    paths = values["path"]
    for row, path in enumerate(paths):
        if path is None or path == "":
            raise InputError(f"{file}, row {row + 1} below the header: it has no path: remove it")
    labels, label_names = labels_of_columns(values, class_names, file)
    has_labels = "label" in values or "label_name" in values
    return ListTable(
        [str(path) for path in paths], values.get("id"), labels, label_names, has_labels
    )


def _columns_of_roles(
    found: Sequence[str], columns: Mapping[str, str], file: str
) -> dict[str, str]:
    """Return role -> name of the column, of the columns that are there.

    Raises:
        InputError: a column that is needed is missing, or there are two of one name.
    """
    names = {}
    for role in ROLES:
        name = columns.get(role, role)
        if found.count(name) > 1:
            raise InputError(f"{file} has more than one column {name!r}: rename all but one")
        if name in found:
            names[role] = name
        elif role in columns or role == "path":
            raise InputError(
                f"{file} has no column {name!r}; found: {listed(map(repr, found))}. Its first "
                f"line must name the columns: add one, or set `{role}_column` on the source to one "
                "of them"
            )
    return names


# --- Parquet


def _parquet_columns(
    content: bytes, file: str, columns: Mapping[str, str]
) -> tuple[dict[str, list[Any]], list[str] | None]:
    """Return role -> values of the columns, and the class names of Hugging Face's metadata."""
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(BytesIO(content))
        n_rows = parquet.metadata.num_rows
        if not 0 <= n_rows <= _MAX_ROWS_PER_BYTE * len(content):
            raise ValueError(f"it declares {n_rows:,} rows in {len(content):,} bytes")
        names = _columns_of_roles(parquet.schema_arrow.names, columns, file)
        values = read_columns(parquet, names, file, len(content))
    except InputError:
        raise
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{file} is not a Parquet file that can be read ({type(exc).__name__}: {exc}): fix it"
        ) from exc

    class_names = None
    if "label" in names:
        class_names = class_label_names(parquet.schema_arrow, names["label"], file)
    return values, class_names


# --- text


def _decoded(content: bytes, file: str, encoding: str | None) -> str:
    known = encoding
    if known is None:
        known = "utf-8"
        for mark, name in _MARKED_ENCODINGS.items():
            if content.startswith(mark):
                known = name
                break
    try:
        text = content.decode(known)
    except UnicodeError as exc:
        line = content.count(b"\n", 0, getattr(exc, "start", 0)) + 1
        raise InputError(
            f"{file}, line {line}: it is not text in {known} ({exc}): save it as UTF-8, or set "
            "`encoding` on the source, such as cp1252"
        ) from exc
    if "\0" in text:
        raise InputError(
            f"{file} holds null characters, which no path has: save it as UTF-8, or set `encoding` "
            "on the source, such as utf-16-le"
        )
    return text.removeprefix("\ufeff")


def _text_columns(
    text: str, file: str, columns: Mapping[str, str], separator: str | None
) -> dict[str, list[Any]]:
    """Return role -> values of the columns of a text file."""
    if separator is None:
        separator = _separator_of(text, columns.get("path", "path"))
    # newline="": a field in quotes may have line breaks of any kind.
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = _header_of(reader)
        names = _columns_of_roles(header, columns, file)
        rows = []
        for row in reader:
            if _is_blank(row):
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{file}, line {reader.line_num}: it has {len(row)} fields and the first line "
                    f"has {len(header)}: put fields with {separator!r} in them in double quotes, "
                    "or set `separator` on the source"
                )
            rows.append(row)
    except csv.Error as exc:
        raise InputError(
            f"{file}, line {reader.line_num}: it cannot be read ({exc}): correct its quotes"
        ) from exc

    values: dict[str, list[Any]] = {}
    for role, name in names.items():
        position = header.index(name)
        texts = [row[position] for row in rows]
        values[role] = texts
        if role != "path":
            values[role] = [text if text.strip() else None for text in texts]
    if "label" in values:
        values["label"] = _numbers_or_names(values["label"])
    return values


def _header_of(reader: Any) -> list[str]:
    """Return the first row that is not blank, without spaces around the names."""
    for row in reader:
        if not _is_blank(row):
            return [name.strip() for name in row]
    return []


def _is_blank(row: Sequence[str]) -> bool:
    """Return whether a row has no field with any text, as spreadsheets write them at the end."""
    return not any(field.strip() for field in row)


def _separator_of(text: str, path_column: str) -> str:
    """Return the separator with which the header has the column of paths; a comma if none has."""
    for separator in _SEPARATORS:
        reader = csv.reader(StringIO(text, newline=""), delimiter=separator)
        try:
            if path_column in _header_of(reader):
                return separator
        except csv.Error:
            continue
    return ","


def _numbers_or_names(texts: Sequence[str | None]) -> list[Any]:
    """Return the labels as numbers if all of them are whole: a text file has no types.

    pandas writes whole numbers as 3.0 if some are missing.
    """
    numbers: list[int | None] = []
    for text in texts:
        if text is None:
            numbers.append(None)
            continue
        number = whole_number(text.strip().removesuffix(".0"))
        if number is None:
            return list(texts)
        numbers.append(number)
    return numbers
