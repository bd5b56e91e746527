"""Labels in a Parquet file: its columns, and the class names in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA_KEY = b"huggingface"
_UNLABELED = -1  # of Hugging Face's data sets


def labels_of_file(
    schema: pa.Schema, columns: Mapping[str, list[Any]], file: str, label_column: str = "label"
) -> tuple[list[Any] | None, list[Any] | None]:
    """Return the class numbers and the class names of a file's rows, None where it has none.

    Names come from the columns or from the metadata of Hugging Face's data sets, where a feature of
    the type `ClassLabel` lists the names of the numbers.

    Args:
        schema: of the file.
        columns: values of its columns `label` and `label_name`, as far as it has them.
        file: name of the file, for messages.
        label_column: name of the column of labels in the file.

    Raises:
        InputError: the metadata has no name for a number, or another one than the column.
    """
    labels = columns.get("label")
    has_texts = labels is not None and any(isinstance(label, str) for label in labels)
    names = None
    if not has_texts:
        names = class_label_names(schema, label_column, file)
    return labels_of_columns(columns, names, file)


def labels_of_columns(
    columns: Mapping[str, list[Any]], names: Sequence[str] | None, file: str
) -> tuple[list[Any] | None, list[Any] | None]:
    """Return the class numbers and the class names of rows, None where they have none.

    Args:
        columns: values of the columns `label` and `label_name`, as far as they are there.
        names: of the numbers in the column `label`, None if they are not known.
        file: name of the file, for messages.

    Raises:
        InputError: there is no name for a number, or another one than in the column.
    """
    labels = columns.get("label")
    label_names = columns.get("label_name")
    # A column `label` that holds text holds names.
    if labels is not None and any(isinstance(label, str) for label in labels):
        if label_names is not None:
            _check_equal_names(labels, label_names, file)
        return None, labels
    if labels is None or names is None:
        return labels, label_names
    known = [None if label == _UNLABELED else label for label in labels]
    outside = [label for label in known if label is not None and not 0 <= label < len(names)]
    if outside:
        raise InputError(
            f"{file}: the label {outside[0]} has no name in the file's metadata, which has "
            f"{len(names)} class names: fix the column, or remove the metadata"
        )
    own_names = [None if label is None else names[label] for label in known]
    if label_names is not None:
        _check_equal_names(own_names, label_names, file)
    return known, own_names


def class_label_names(schema: pa.Schema, column: str, file: str) -> list[str] | None:
    """Return the names that the metadata of Hugging Face has for the numbers of a column.

    They are a list, or a mapping of "0", "1" and so on.

    Raises:
        InputError: the metadata cannot be read, or has names in another form.
    """
    content = (schema.metadata or {}).get(_METADATA_KEY)
    if content is None:
        return None
    try:
        about = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise InputError(
            f"{file}: its metadata 'huggingface', where the names of its classes may be, cannot be "
            f"read ({exc}): write the file again, or remove its metadata"
        ) from exc
    # Any of the levels may be missing or something else: the metadata may be of any version.
    for key in ("info", "features", column):
        if not isinstance(about, dict):
            return None
        about = about.get(key)
    if not isinstance(about, dict) or about.get("_type") != "ClassLabel":
        return None
    names = about.get("names")
    if not names:
        return None
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list):
        raise InputError(
            f"{file}: its metadata 'huggingface' has names of the classes of {column!r} that are "
            "neither a list nor a mapping of the numbers 0, 1, … to names: write the file again, "
            "or remove its metadata"
        )
    return [str(name) for name in names]


def _check_equal_names(first: Sequence[Any], second: Sequence[Any], file: str) -> None:
    """Refuse two names of the same image; one of them may be missing."""
    for row, (name, other) in enumerate(zip(first, second, strict=True)):
        if name is not None and other is not None and name != other:
            raise InputError(
                f"{file}, row {row}: the label is {name!r}, and the column 'label_name' has "
                f"{other!r}: remove the one that is not meant"
            )
