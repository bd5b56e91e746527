"""The columns of a Parquet file that a source reads: their names, and the values of texts."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_names import listed
from pu_kd_pipeline.images.sources.limits import MAX_TEXT_CHARACTERS

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pu_kd_pipeline.params.data_ingestion import ImageSource

_IMAGE = "image"
HOW_TO_EMBED = (
    "embed the images before the file is written (with Hugging Face's datasets: "
    "`dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)`), or use "
    "the image files themselves in a source of type 'folder'"
)
# In lower case; looked for where there is no column `image`.
_OTHER_IMAGE_NAMES = frozenset(
    [
        *("images", "img", "imgs", "jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp"),
        *("bytes", "image_bytes", "img_bytes", "image_data", "image_file", "picture", "photo"),
    ]
)
_READ_ROWS = 1_000
# Texts of a file may take this much memory, or a multiple of its size.
_MAX_TEXT_BYTES = 2**28
_MAX_TEXT_SHARE = 8


def choose_columns(
    schema: pa.Schema, source: ImageSource, file: str, partition: Collection[str] = ()
) -> dict[str, str]:
    """Return the names of the columns: `image`, and `id`, `label`, `label_name` if there are any.

    Args:
        schema: of the file.
        source: parameters of the source.
        file: its name, for messages.
        partition: which of `label` and `label_name` the folder of the file has, so that they need
            no column.

    Raises:
        InputError: a column that the source names is missing, it is not clear which one holds the
            images, that one holds no bytes, or two columns have one name.
    """
    given = {
        "image": source.image_column,
        "id": source.id_column,
        "label": source.label_column,
        "label_name": source.label_name_column,
    }
    existing = set(schema.names)
    columns = {}
    for role, name in given.items():
        if name is not None and name not in existing:
            if role in partition:
                continue
            raise InputError(
                f"{file} has no column {name!r}, which `{role}_column` of the source names; found: "
                f"{listed(schema.names)}"
            )
        if name is not None:
            columns[role] = name
        elif role in existing:
            columns[role] = role
    if "image" not in columns:
        columns["image"] = _other_image_column(schema, file)

    for name in columns.values():
        if schema.names.count(name) > 1:
            raise InputError(f"{file} has more than one column {name!r}: rename all but one")
    _check_image_type(schema.field(columns["image"]).type, columns["image"], file)
    return columns


def _other_image_column(schema: pa.Schema, file: str) -> str:
    """Return the only column with bytes that has another common name of images.

    Raises:
        InputError: there is none, or more than one.
    """
    found = []
    for field in schema:
        has_common_name = field.name.lower() in {_IMAGE, *_OTHER_IMAGE_NAMES}
        if has_common_name and (_holds_bytes(field.type) or _holds_only_paths(field.type)):
            found.append(field.name)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{file} has {len(found)} columns that may hold the images ({listed(found)}): name one "
            "of them as `image_column` of the source"
        )
    names = listed(schema.names) or "none"
    raise InputError(
        f"{file} has no column 'image'; found: {names}. A source of type 'parquet' needs image "
        "files' bytes: name their column as `image_column` of the source"
    )


def _check_image_type(kind: pa.DataType, name: str, file: str) -> None:
    if _holds_bytes(kind):
        return
    if _holds_only_paths(kind):
        raise InputError(only_paths_error(name, file))
    fix = ""
    if _holds_text(_element_type(kind)):
        fix = (
            ". If these are paths of image files, use a source of type 'list' with this column as "
            "`path_column`"
        )
    raise InputError(
        f"{file}: the column {name!r} is {kind}; it must hold the bytes of image files (binary)"
        f"{fix}"
    )


def only_paths_error(name: str, file: str) -> str:
    """Return the message on images that are only referred to."""
    return (
        f"{file}: the column {name!r} holds only the paths of image files and not their bytes, and "
        f"these paths are not opened: {HOW_TO_EMBED}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a type is bytes, a struct with the field `bytes`, or a list of one of them."""
    import pyarrow as pa

    kind = _element_type(kind)
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return False
        kind = _element_type(kind.field("bytes").type)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _holds_only_paths(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = _element_type(kind)
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return False
    if pa.types.is_null(kind.field("path").type):
        return False
    if kind.get_field_index("bytes") < 0:
        return True
    return pa.types.is_null(kind.field("bytes").type)


def _element_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the elements of a list or dictionary, or the type itself."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind


# --- texts and numbers


def texts_to_read_as_dictionaries(schema: pa.Schema, columns: dict[str, str]) -> list[str]:
    """Return the columns next to the images that hold text.

    As dictionaries, equal texts take memory once: a small file may hold a long one a million times.
    """
    names = []
    for role, name in columns.items():
        kind = schema.field(name).type
        if role != "image" and _holds_text(kind):
            names.append(name)
    return list(dict.fromkeys(names))


def read_columns(
    parquet: pq.ParquetFile, columns: dict[str, str], file: str, size_bytes: int | None
) -> dict[str, list[Any]]:
    """Return the values of the columns next to the images, by `id`, `label` and `label_name`.

    Raises:
        InputError: they hold something else than text and whole numbers, or too much of it.
        ValueError: the file has fewer rows than it declares.
    """
    roles = {role: name for role, name in columns.items() if role != "image"}
    values: dict[str, list[Any]] = {role: [] for role in roles}
    if not roles:
        return values
    names = list(dict.fromkeys(roles.values()))
    known: dict[Any, Any] = {}
    limit = max(_MAX_TEXT_BYTES, _MAX_TEXT_SHARE * (size_bytes or 0))
    n_characters = 0
    for batch in parquet.iter_batches(_READ_ROWS, columns=names):
        for role, name in roles.items():
            for value in _plain_values(batch.column(name), role, name, file):
                # Equal texts are one object.
                values[role].append(known.setdefault(value, value))
                if isinstance(value, str):
                    n_characters += len(value)
        if n_characters > limit:
            raise InputError(
                f"{file}: the columns {listed(names)} unpack to more than {limit // 2**20:,} MiB "
                "of text: name other columns as `id_column`, `label_column` and "
                "`label_name_column` of the source"
            )
    n_rows = parquet.metadata.num_rows
    n_read = len(next(iter(values.values())))
    if n_read != n_rows:
        raise ValueError(f"it declares {n_rows:,} rows and has {n_read:,}")
    return values


def _plain_values(column: pa.Array, role: str, name: str, file: str) -> list[Any]:
    """Return a part of a column of ids, labels or names as integers or strings.

    Labels may be floats that are whole; NaN is a missing label.

    Raises:
        InputError: it holds something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        _check_lengths(column.dictionary, name, file)
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_float16(kind) and role == "label":
        column = _as_float32(column)
        kind = column.type
    if pa.types.is_floating(kind) and role == "label":
        nothing = pa.scalar(None, kind)
        column = pc.if_else(pc.is_nan(column), nothing, column)
    # `true` need not be class 1: it is a name.
    if pa.types.is_boolean(kind) and role == "label":
        column = column.cast(pa.string())
        kind = column.type
    is_number = _holds_numbers(kind, role)
    if not (is_number or _holds_text(kind) or pa.types.is_null(kind)):
        raise InputError(
            f"{file}: the column {name!r} is {kind}; it must hold text or whole numbers"
        )
    if _holds_text(kind):
        _check_lengths(column, name, file)
    try:
        if is_number:
            column = column.cast(pa.int64())
        values: list[Any] = column.to_pylist()
    except pa.ArrowInvalid as exc:
        raise InputError(
            f"{file}: the column {name!r} holds more than whole numbers of 64 bits ({exc})"
        ) from exc
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{file}: the column {name!r} holds text that is not UTF-8 ({exc}): fix it"
        ) from exc
    return values


def _as_float32(column: pa.Array) -> pa.Array:
    """Return a column of 16-bit floats in 32 bits; many versions of pyarrow cannot cast them."""
    import pyarrow as pa

    values = []
    for value in column.to_pylist():
        values.append(None if value is None else float(value))
    return pa.array(values, pa.float32())


def _check_lengths(texts: pa.Array, name: str, file: str) -> None:
    """Refuse texts that are too long to be ids or labels.

    Raises:
        InputError: one is.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _holds_text(texts.type):
        return
    if pa.types.is_string_view(texts.type):
        texts = texts.cast(pa.large_string())
    n_bytes = pc.max(pc.binary_length(texts)).as_py() or 0
    if n_bytes <= MAX_TEXT_CHARACTERS:
        return
    n_characters = pc.max(pc.utf8_length(texts)).as_py()
    if n_characters > MAX_TEXT_CHARACTERS:
        raise InputError(
            f"{file}: the column {name!r} holds a text of {n_characters:,} characters, and ids, "
            f"labels and class names have at most {MAX_TEXT_CHARACTERS:,}: name another column as "
            "`id_column`, `label_column` or `label_name_column` of the source, or shorten them"
        )


def _holds_numbers(kind: pa.DataType, role: str) -> bool:
    import pyarrow as pa

    if pa.types.is_integer(kind):
        return True
    # An id such as 1.0 would be another one than 1; a label is a class in whatever type it comes.
    is_like_a_number = pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return role == "label" and is_like_a_number


def _holds_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
