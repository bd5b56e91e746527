"""Which images of a source are used, and as which class of the teacher.

Labels, shares and seeded draws: tables in, tables out; no image is read here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_joining import NO_CLASS, JoinedLabel, join_labels
from pu_kd_pipeline.images.label_keys import SourceLabel, match_keys
from pu_kd_pipeline.images.label_names import listed, whole_number
from pu_kd_pipeline.masking import visible_name

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource

logger = logging.getLogger(__name__)

_MAX_NAMED = 10  # offenders that a message lists


def in_share(ids: pd.Series, share: tuple[float, float]) -> np.ndarray:
    """Return (N,) bool: the hash of the id, mapped to [0, 1), falls in [from, to).

    The hash depends only on the id: disjoint shares of a source never overlap, whatever the seed.
    """
    start, end = share
    if share == (0.0, 1.0):
        return np.ones(len(ids), dtype=bool)

    hashes = _hashes(ids)
    # 53 bits are what a float64 holds: more would round the largest hash up to 1.
    high_bits = hashes >> np.uint64(11)
    position = high_bits.astype(np.float64) / 2**53
    return (position >= start) & (position < end)


def _hashes(ids: pd.Series) -> np.ndarray:
    """Return (N,) uint64 hashes, which depend only on the ids."""
    digests = []
    for image_id in ids:
        content = image_id.encode()
        digest = hashlib.blake2b(content, digest_size=8)
        digests.append(digest.digest())
    # Big-endian on every machine: the hash must not depend on where it is computed.
    hashes = np.frombuffer(b"".join(digests), dtype=">u8")
    return hashes.astype(np.uint64)


def rank_in_label(listing: pd.DataFrame) -> np.ndarray:
    """Return (N,) int64: the position of each image among those of its label, from 0.

    The order is that of a hash of the id. Only ids and labels of the listing matter: sources of the
    same files with disjoint ranges of ranks never overlap, whatever their other parameters are.

    Args:
        listing: all images of a source with `id`, `label` and `label_name`.
    """
    names = listing["label_name"].str.strip()
    is_blank = names.fillna("") == ""
    numbers = listing["label"].astype("object")
    # A number next to a name is not read, as where labels are joined to classes.
    keys = pd.DataFrame(
        {
            "name": names.mask(is_blank),
            "number": numbers.where(is_blank, None),
            "hash": _hashes(listing["id"]),
            "id": listing["id"].to_numpy(),
        }
    )
    # Two ids may have the same hash.
    ordered = keys.sort_values(["hash", "id"], kind="stable")
    ranks = ordered.groupby(["name", "number"], dropna=False, sort=False).cumcount()
    return ranks.sort_index().to_numpy(dtype=np.int64)


def is_in_label_ranks(
    rows: pd.DataFrame, listing: pd.DataFrame, source: ImageSource, where: str
) -> np.ndarray:
    """Return (N,) bool: the image has no class, or a rank in its label within `label_ranks`.

    A label with fewer images than the range asks for is logged as a warning.

    Args:
        rows: some images of a source, labeled by `with_teacher_labels`, with `listing_row`.
        listing: all images of the source.
        source: its parameters.
        where: name of the source, for messages.

    Raises:
        InputError: no image has a class, so that there is nothing to split.
    """
    assert source.label_ranks is not None
    if rows.empty:  # as of a small share; that no image is left is reported later
        return np.zeros(0, dtype=bool)
    start, end = source.label_ranks
    has_class = rows["label"].notna().to_numpy()
    if not has_class.any():
        raise InputError(
            f"{where}: label_ranks splits the images of each class of the teacher, and no image "
            "has one: correct the labels or label_map, or use `share`, which needs no labels"
        )
    ranks = rank_in_label(listing)[rows["listing_row"]]
    is_in_range = ranks >= start
    if end is not None:
        is_in_range &= ranks < end
        _warn_of_short_labels(rows[has_class], is_in_range[has_class], end - start, where)
    return is_in_range | ~has_class


def _warn_of_short_labels(
    rows: pd.DataFrame, is_in_range: np.ndarray, n_wanted: int, where: str
) -> None:
    # Summed, and not only counted where true: a label may have no image in the range.
    n_found = pd.Series(is_in_range).groupby(rows["source_label"].to_numpy()).sum()
    short = n_found[n_found < n_wanted]
    if len(short):
        found = [f"{label} ({count})" for label, count in short.items()]
        logger.warning(
            "%s: label_ranks asks for %d images of each label, and these have fewer: %s",
            where,
            n_wanted,
            listed(found),
        )


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
            `exclude_labels` and `other_labels` are used.
        class_names: names of the teacher's classes 0..K-1.
        where: name of the source, for messages.
        listing: all rows of the source, of which `rows` are a part; None: there are no others. The
            labels of all are compared, so that a label is the same class in every share.

    Raises:
        InputError: with `labels: classes`, an image has no class of the teacher and
            `other_labels` does not leave it out; or a label may be one class or another.
    """
    codes, labels = _distinct_labels(rows, listing)
    is_excluded = _are_excluded(labels, source, where)
    joined = _joined_without(labels, is_excluded, source, class_names, where)
    is_kept = ~is_excluded[codes]
    codes = codes[is_kept]
    table = rows[is_kept].copy()

    texts = [_label_text(label) for label in labels]
    rules = [str(found.rule) for found in joined]
    indices = [found.class_index for found in joined]
    table["source_label"] = _taken(texts, codes, "str")
    table["rule"] = _taken(rules, codes, "str")
    table["label"] = _taken(indices, codes, "Int32")
    is_unmatched = table["label"].isna()
    if source.labels == "classes" and is_unmatched.any():
        unmatched = table[is_unmatched.to_numpy()]
        if source.other_labels == "refuse":
            raise InputError(_unmatched_message(unmatched, source, class_names, where))
        _log_left_out(unmatched, where)
        table = table[~is_unmatched.to_numpy()].copy()
        is_unmatched = table["label"].isna()

    # An image with a label of no class is irrelevant; without any label it is unknown.
    is_relevant = (~is_unmatched).astype("boolean")
    is_labeled = table["source_label"].notna()
    if source.labels == "ignore":
        is_labeled[:] = False
    table["relevant"] = is_relevant.where(is_labeled)
    return table


def check_all_classes_present(
    labels: pd.Series, class_names: Sequence[str], where: str, key: str
) -> None:
    """Raise an InputError that names the classes without a single image.

    Args:
        labels: classes of the images that were selected.
        class_names: names of the teacher's classes.
        where: name of the store, for the message.
        key: of the source, which selected images of each class.
    """
    present = set(labels.dropna().astype(int))
    absent = []
    for number, name in enumerate(class_names):
        if number not in present:
            absent.append(f"{number} ({visible_name(name)})")
    if absent:
        named = absent[:_MAX_NAMED]
        raise InputError(
            f"{where}: {key} asks for images of every class of the teacher, and there are none of "
            f"class {', '.join(named)}. Add images of it, or correct `label_map` or the "
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
        names = table["label_name"]
        # A text without a character is how some writers of tables store a missing name.
        stripped = names.str.strip()
        is_blank = stripped.fillna("") == ""
        columns = {
            "number": table["label"],
            "name": names.mask(is_blank),
            "file": table.get("file", 0),
        }
        parts.append(pd.DataFrame(columns))
    both = pd.concat(parts, ignore_index=True)

    groups = both.groupby(["number", "name", "file"], dropna=False, sort=False)
    codes = groups.ngroup().to_numpy()
    _, first_positions = np.unique(codes, return_index=True)
    first_rows = both.iloc[first_positions].astype(object)
    known = first_rows.where(first_rows.notna(), None)
    labels = [SourceLabel(*values) for values in known.itertuples(index=False)]
    return codes[: len(rows)], labels


def _are_excluded(labels: list[SourceLabel], source: ImageSource, where: str) -> np.ndarray:
    """Return (L,) bool: `exclude_labels` names the label."""
    if not source.exclude_labels:
        return np.zeros(len(labels), dtype=bool)
    texts = map(str, source.exclude_labels)
    keys = list(dict.fromkeys(texts))
    keys_per_label = match_keys(labels, keys, "exclude_labels", where)
    return np.array([bool(found) for found in keys_per_label])


def _joined_without(
    labels: list[SourceLabel],
    is_excluded: np.ndarray,
    source: ImageSource,
    class_names: Sequence[str],
    where: str,
) -> list[JoinedLabel]:
    """Return the classes of the labels; those that are excluded, or not to be read, have none."""
    joined = [NO_CLASS] * len(labels)
    if source.labels == "ignore":
        return joined
    rows = np.flatnonzero(~is_excluded)
    remaining = [labels[row] for row in rows]
    # "a" does not become the class "A" because the label "A" was excluded.
    excluded_names = {labels[row].name for row in np.flatnonzero(is_excluded)}
    found = join_labels(remaining, source, class_names, where, excluded_names)
    for row, each in zip(rows, found, strict=True):
        joined[row] = each
    return joined


def _taken(values: Sequence[Any], codes: np.ndarray, dtype: str) -> Any:
    """Return the array of a column that holds, in each row, the value of the row's label."""
    column = pd.Series(values, dtype=dtype)
    return column.take(codes).array


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
    found = _counted_labels(unmatched)
    return (
        f"{where}: the teacher has {len(class_names)} classes ({listed(class_names)}); the labels "
        f"of {len(unmatched):,} images {problem}: {listed(found)}. Correct the source, "
        f"{fix}, set `other_labels: leave_out`, or set labels to 'truth' or 'ignore'"
    )


def _log_left_out(unmatched: pd.DataFrame, where: str) -> None:
    found = listed(_counted_labels(unmatched))
    logger.info(
        "%s: left out, because their labels are no class: %d images: %s",
        where,
        len(unmatched),
        found,
    )


def _counted_labels(rows: pd.DataFrame) -> list[str]:
    """Return the labels of some rows with the number of images, most first."""
    labels = rows["source_label"].fillna("no label")
    return [f"{label} ({count:,})" for label, count in labels.value_counts().items()]
