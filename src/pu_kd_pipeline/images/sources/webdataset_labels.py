"""Labels of the samples in WebDataset shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.sources.webdataset_fields import (
    DEFAULT_LABELS,
    Field,
    field_named,
    names_of_entries,
    read_field,
)
from pu_kd_pipeline.masking import visible_name

if TYPE_CHECKING:
    from pu_kd_pipeline.images.sources.webdataset_samples import Sample, Shard
    from pu_kd_pipeline.params.data_ingestion import ImageSource

    _Value: TypeAlias = int | str | None

_MAX_NAMED = 20


class LabelReader:
    """Collects the labels of samples, one after the other.

    Args:
        source: parameters of the source. With `labels: ignore`, nothing is read. Without
            `label_column` and `label_name_column`, a sample's label is its `cls`, or `label` in its
            `json`.

    Attributes:
        extensions: of the files that labels are read from.
    """

    def __init__(self, source: ImageSource) -> None:
        self._number_fields: tuple[Field, ...] = ()
        self._name_fields: tuple[Field, ...] = ()
        if source.labels != "ignore":
            if source.label_name_column is not None:
                self._name_fields = (field_named(source.label_name_column),)
            if source.label_column is not None:
                self._number_fields = (field_named(source.label_column),)
            elif not self._name_fields:
                self._number_fields = DEFAULT_LABELS
        fields = (*self._number_fields, *self._name_fields)
        self.extensions = frozenset(field.extension for field in fields)
        self._labels: list[_Value] = []
        self._names: list[_Value] = []
        self._used: dict[Field, str] = {}  # field -> the first sample that has it
        self._found: dict[str, None] = {}  # what samples have, in the order in which it was found

    def add(self, shard: Shard, sample: Sample) -> None:
        """Read the label of the next sample.

        Raises:
            InputError: it cannot be read, or is neither a whole number nor a text.
        """
        self._labels.append(self._value(self._number_fields, shard, sample))
        self._names.append(self._value(self._name_fields, shard, sample))

    def columns(self, path: str) -> tuple[list[int | None] | None, list[str | None] | None]:
        """Return class numbers and class names of the samples, None where there are none.

        Args:
            path: of the source, for messages.

        Raises:
            InputError: no sample has a label, samples have labels in different fields, or two
                fields disagree.
        """
        if not self.extensions:
            return None, None
        self._check_used(path)
        names: list[str | None] | None = None
        if self._name_fields:
            names = [_text(value) for value in self._names]
        # As in a column of a table: one text makes names of all.
        if any(isinstance(label, str) for label in self._labels):
            own_names = [_text(value) for value in self._labels]
            _check_equal(own_names, names, path)
            return None, own_names
        labels = [label if isinstance(label, int) else None for label in self._labels]
        return labels, names

    def _value(self, fields: tuple[Field, ...], shard: Shard, sample: Sample) -> _Value:
        """Return the value of the first of some fields that a sample has."""
        for field in fields:
            content = shard.label_content(sample, field.extension)
            if content is None:
                self._note(sample.members)
                continue
            where = shard.where(sample)
            value, is_there = read_field(field, content, where)
            if is_there:
                self._used.setdefault(field, where)
                return value
            if len(self._found) < _MAX_NAMED:
                entries = names_of_entries(content, where)
                self._note([f"{field.extension}.{entry}" for entry in entries])
        return None

    def _note(self, found: Iterable[str]) -> None:
        if len(self._found) < _MAX_NAMED:
            self._found.update(dict.fromkeys(found))

    def _check_used(self, path: str) -> None:
        for fields in (self._number_fields, self._name_fields):
            used = [field for field in fields if field in self._used]
            if fields and not used:
                wanted = " or ".join(map(str, fields))
                names = list(map(visible_name, self._found))[:_MAX_NAMED]
                raise InputError(
                    f"{path}: no sample has {wanted}; found: {', '.join(names)}. Name the label as "
                    "`label_column` of the source, such as cls or json.label, or set labels to "
                    "'ignore'"
                )
            if len(used) > 1:
                found = [f"{field} ({self._used[field]})" for field in used]
                raise InputError(
                    f"{path}: samples have labels in different fields: {' and '.join(found)}. Name "
                    "one of them as `label_column` of the source"
                )


def _text(value: _Value) -> str | None:
    if value is None:
        return None
    return str(value)


def _check_equal(
    labels: Sequence[str | None], names: Sequence[str | None] | None, path: str
) -> None:
    """Refuse two names of the same image; one of them may be missing."""
    if names is None:
        return
    for label, name in zip(labels, names, strict=True):
        if label is not None and name is not None and label != name:
            raise InputError(
                f"{path}: a sample has the label {visible_name(label)!r} and the name "
                f"{visible_name(name)!r}: remove `label_column` or `label_name_column`"
            )
