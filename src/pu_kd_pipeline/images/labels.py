"""Which images of a source are used, and as which class of the teacher.

Labels, shares and seeded draws: tables in, tables out; no image is read here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_joining import (
    NO_CLASS,
    JoinedLabel,
    SourceLabel,
    join_labels,
    match_keys,
)
from pu_kd_pipeline.images.label_names import listed, whole_number

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource

_MAX_NAMED = 10  # offenders that a message lists


def in_share(ids: pd.Series, share: tuple[float, float]) -> np.ndarray:
    """Return (N,) bool: the hash of the id, mapped to [0, 1), falls in [from, to).

    The hash depends only on the id: disjoint shares of a source never overlap, whatever the seed.
    """
    start, end = share
    if share == (0.0, 1.0):
        return np.ones(len(ids), dtype=bool)

    digests = []
    for image_id in ids:
        content = image_id.encode()
        digest = hashlib.blake2b(content, digest_size=8)
        digests.append(digest.digest())
    # Big-endian on every machine: the share must not depend on where it is computed.
    hashes = np.frombuffer(b"".join(digests), dtype=">u8")
    # 53 bits are what a float64 holds: more would round the largest hash up to 1.
    high_bits = hashes >> np.uint64(11)
    position = high_bits.astype(np.float64) / 2**53
    return (position >= start) & (position < end)


def draw(
    labels: pd.Series,
    per_class: int | None,
    limit: int | None,
    rng: np.random.Generator,
    n_classes: int,
) -> np.ndarray:
    """Return the ascending positions of a random draw: `per_class` of each class, then `limit`.

    The draw of a smaller number is contained in that of a larger one. Images without a class are
    subject to `limit` only. A class with fewer images contributes all it has.
    """
    kept = np.arange(len(labels))

    if per_class is not None:
        classes = labels.fillna(-1).to_numpy(dtype=np.int64)
        parts = [kept[classes < 0]]
        for number in range(n_classes):
            is_of_class = classes == number
            of_class = kept[is_of_class]
            # The first rows of one permutation: this is what nests smaller draws in larger ones.
            drawn = rng.permutation(of_class)[:per_class]
            parts.append(drawn)
        kept = np.sort(np.concatenate(parts))

    if limit is not None:
        drawn = rng.permutation(kept)[:limit]
        kept = np.sort(drawn)

    return kept


def with_teacher_labels(
    rows: pd.DataFrame,
    source: ImageSource,
    class_names: Sequence[str],
    where: str,
    listing: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return rows of a source with `label` (Int32, class of the teacher or null) and `relevant`.

    `relevant` (boolean or null) is whether the image belongs to a class of the teacher. Images that
    `exclude_labels` names are left out. `source_label` (string or null) is the label in the source,
    and `rule` (string) how it was joined to the class (`label_joining.Rule`).

    Args:
        rows: the images to label, with their own `label` (Int64 or null) and `label_name` (string
            or null). Images of the same `file` number their classes alike.
        source: parameters of the source; `labels`, `label_map`, `sorted_names` and
            `exclude_labels` are used.
        class_names: names of the teacher's classes 0..K-1.
        where: name of the source, for messages.
        listing: all rows of the source, of which `rows` are a part; None: there are no others. The
            labels of all are compared, so that a label is the same class in every share.

    Raises:
        InputError: with `labels: classes`, an image has no class of the teacher; or a label may be
            one class or another.
    """
    codes, labels = _distinct_labels(rows, listing)
    is_excluded = np.zeros(len(labels), dtype=bool)
    if source.exclude_labels:
        keys = list(dict.fromkeys(map(str, source.exclude_labels)))
        keys_per_label = match_keys(labels, keys, "exclude_labels", where)
        is_excluded = np.array([bool(found) for found in keys_per_label])
    is_kept = ~is_excluded[codes]
    table = rows[is_kept].copy()
    codes = codes[is_kept]

    joined = [NO_CLASS] * len(labels)
    if source.labels != "ignore":
        joined = _joined_without(labels, is_excluded, source, class_names, where)
    table["source_label"] = _column_of(labels, codes, _label_text, "str")
    table["rule"] = _column_of(joined, codes, lambda found: str(found.rule), "str")
    indices = _column_of(joined, codes, lambda found: found.class_index, "Int32")
    classes = pd.Series(indices, index=table.index)
    if source.labels == "classes" and classes.isna().any():
        unmatched = table[classes.isna().to_numpy()]
        raise InputError(_unmatched_message(unmatched, source, class_names, where))

    table["label"] = classes
    # An image with a label of no class is irrelevant; without any label nobody knows.
    is_relevant = classes.notna().astype("boolean")
    is_labeled = table["source_label"].notna()
    if source.labels == "ignore":
        is_labeled[:] = False
    table["relevant"] = is_relevant.where(is_labeled)
    return table


def check_all_classes_present(labels: pd.Series, class_names: Sequence[str], where: str) -> None:
    """Raise an InputError that names the classes without a single image."""
    present = set(labels.dropna().astype(int))
    absent = []
    for number, name in enumerate(class_names):
        if number not in present:
            absent.append(f"{number} ({name})")
    if absent:
        named = absent[:_MAX_NAMED]
        raise InputError(
            f"{where}: `per_class` asks for images of every class of the teacher, and there are "
            f"none of class {', '.join(named)}. Add images of it, or correct `label_map` or the "
            "teacher's `classes`"
        )


def _distinct_labels(
    rows: pd.DataFrame, listing: pd.DataFrame | None
) -> tuple[np.ndarray, list[SourceLabel]]:
    """Return the number of each row's label, and the labels of the whole source."""
    tables = [rows]
    if listing is not None:
        tables.append(listing)
    parts = []
    for table in tables:
        # A text without a character is how some writers of tables store a missing name.
        is_blank = table["label_name"].str.strip() == ""
        names = table["label_name"].mask(is_blank.fillna(False).astype(bool))
        files = table.get("file", 0)
        parts.append(pd.DataFrame({"number": table["label"], "name": names, "file": files}))
    both = pd.concat(parts, ignore_index=True)

    groups = both.groupby(["number", "name", "file"], dropna=False, sort=False)
    codes = groups.ngroup().to_numpy()
    _, first_positions = np.unique(codes, return_index=True)
    first_rows = both.iloc[first_positions].astype(object)
    known = first_rows.where(first_rows.notna(), None)
    labels = [SourceLabel(*values) for values in known.itertuples(index=False)]
    return codes[: len(rows)], labels


def _joined_without(
    labels: list[SourceLabel],
    is_excluded: np.ndarray,
    source: ImageSource,
    class_names: Sequence[str],
    where: str,
) -> list[JoinedLabel]:
    """Return the classes of the labels; those that are excluded have none, and decide nothing."""
    remaining = [label for label, is_out in zip(labels, is_excluded, strict=True) if not is_out]
    joined = iter(join_labels(remaining, source, class_names, where))
    return [NO_CLASS if is_out else next(joined) for is_out in is_excluded]


def _column_of(
    values: Sequence[Any], codes: np.ndarray, content: Callable[[Any], Any], dtype: str
) -> Any:
    """Return the array of a column with the content of each row's value."""
    contents = pd.Series([content(value) for value in values], dtype=dtype)
    return contents.take(codes).array


def _label_text(label: SourceLabel) -> str | None:
    if label.number is None and label.name is None:
        return None
    return str(label)


def _unmatched_message(
    unmatched: pd.DataFrame, source: ImageSource, class_names: Sequence[str], where: str
) -> str:
    problem = "label_map does not list"
    fix = "give label_map (label: number of the class)"
    if source.label_map is None:
        problem = "are none of them"
        if all(whole_number(name) is not None for name in class_names):
            fix += (
                ", or `sorted_names: true` if the teacher's classes are in the order of these names"
            )
    counts = unmatched["source_label"].fillna("no label").value_counts()
    found = [f"{label} ({count:,})" for label, count in counts.items()]
    return (
        f"{where}: the teacher has {len(class_names)} classes ({listed(class_names)}); the labels "
        f"of {len(unmatched):,} images {problem}: {listed(found)}. Correct the source, "
        f"{fix}, or set labels to 'truth' or 'ignore'"
    )
