"""Which images of a source are used, and as which class of the teacher.

Labels, shares and seeded draws: tables in, tables out; no image is read here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.masking import visible_name

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource

_MAX_NAMED = 10  # offenders that a message lists
logger = logging.getLogger(__name__)


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


def without_labels(listing: pd.DataFrame, labels: Sequence[int | str], where: str) -> pd.DataFrame:
    """Return the rows of a listing whose own label and class name are not among `labels`.

    Raises:
        InputError: no image has one of these labels.
    """
    excluded = set(map(str, labels))
    numbers = listing["label"].astype("str")
    names = listing["label_name"]
    found = _distinct_labels(listing)
    absent = sorted(excluded - found)
    if absent:
        raise InputError(
            f"{where}: no image has the labels {_listed(absent)} of exclude_labels; "
            f"found: {_found_labels(listing)}"
        )

    has_number = numbers.isin(excluded)
    has_name = names.isin(excluded)
    is_excluded = has_number | has_name
    return listing[~is_excluded.to_numpy(dtype=bool)]


def with_teacher_labels(
    listing: pd.DataFrame, source: ImageSource, class_names: Sequence[str], where: str
) -> pd.DataFrame:
    """Return the listing with `label` (Int32, class of the teacher or null) and `relevant`.

    `relevant` (boolean or null) is whether the image belongs to a class of the teacher. Images that
    `exclude_labels` names are left out.

    Args:
        listing: rows of a source, with its own `label` (Int64 or null) and `label_name` (string or
            null).
        source: parameters of the source; `labels`, `label_map` and `exclude_labels` are used.
        class_names: names of the teacher's classes 0..K-1.
        where: name of the source, for messages.

    Raises:
        InputError: with `labels: classes`, an image has no class of the teacher; or the labels
            cannot be understood.
    """
    if source.exclude_labels:
        listing = without_labels(listing, source.exclude_labels, where)
    table = listing.copy()

    if source.labels == "ignore":
        nothing = [None] * len(table)
        table["label"] = pd.array(nothing, dtype="Int32")
        table["relevant"] = pd.array(nothing, dtype="boolean")
        return table

    classes = _teacher_classes(listing, source, class_names, where)
    is_unmatched = classes.isna()
    if source.labels == "classes" and is_unmatched.any():
        unmatched = listing[is_unmatched.to_numpy()]
        raise InputError(_unmatched_message(unmatched, source, class_names, where))

    table["label"] = classes.astype("Int32")
    # An image with a label of no class is irrelevant; without any label nobody knows.
    has_number = listing["label"].notna()
    has_name = listing["label_name"].notna()
    is_labeled = has_number | has_name
    is_relevant = classes.notna().astype("boolean")
    table["relevant"] = is_relevant.where(is_labeled)
    return table


def check_all_classes_present(labels: pd.Series, class_names: Sequence[str], where: str) -> None:
    """Raise an InputError that names the classes without a single image."""
    present = set(labels.dropna().astype(int))
    absent = []
    for number, name in enumerate(class_names):
        if number not in present:
            absent.append(f"{number} ({visible_name(name)})")
    if absent:
        named = absent[:_MAX_NAMED]
        raise InputError(
            f"{where}: `per_class` asks for images of every class of the teacher, and there are "
            f"none of class {', '.join(named)}. Add images of it, or correct `label_map` or the "
            "teacher's `classes`"
        )


def _teacher_classes(
    listing: pd.DataFrame, source: ImageSource, class_names: Sequence[str], where: str
) -> pd.Series:
    """Return the teacher's class of every row, null where it has none (Int64)."""
    n_classes = len(class_names)
    if source.label_map is not None:
        return _by_label_map(listing, source.label_map, n_classes, where)
    numbers = listing["label"]
    names = listing["label_name"]
    class_by_name = _classes_by_name(names, class_names)

    if numbers.isna().all():
        return _by_name_alone(names, class_by_name, source, class_names, where)
    if class_by_name.notna().all():
        # The names are the teacher's, so its order holds, whatever the source's is.
        return class_by_name

    # Numbers outside of the teacher's classes are images of none of its classes.
    is_in_range = (numbers >= 0) & (numbers < n_classes)
    in_range = numbers.where(is_in_range)
    _check_same_numbering(in_range, names, class_by_name, class_names, where)
    return in_range


def _classes_by_name(names: pd.Series, class_names: Sequence[str]) -> pd.Series:
    """Return the class of each name, null for a name that no class has (Int64)."""
    class_of_name = {_plain(name): number for number, name in enumerate(class_names)}

    def class_of(name: str) -> int | None:
        return class_of_name.get(_plain(name))

    classes = names.map(class_of, na_action="ignore")
    return classes.astype("Int64")


def _by_label_map(
    listing: pd.DataFrame, label_map: Mapping[str, int], n_classes: int, where: str
) -> pd.Series:
    outside = {}
    for key, number in label_map.items():
        if not 0 <= number < n_classes:
            outside[key] = number
    if outside:
        raise InputError(
            f"{where}: label_map leads to classes outside 0..{n_classes - 1} of the teacher: "
            f"{outside}"
        )

    names = listing["label_name"]
    numbers = listing["label"].astype("str")
    found = _distinct_labels(listing)
    absent = [key for key in label_map if key not in found]
    if label_map and len(absent) == len(label_map):
        raise InputError(
            f"{where}: no key of label_map ({_listed(absent)}) is a label there; found: "
            f"{_found_labels(listing)}"
        )
    # A part of a data set may lack some classes, so this is not an error.
    if absent:
        logger.warning("%s: no image has these labels of label_map: %s", where, _listed(absent))

    class_by_number = numbers.map(label_map).astype("Int64")
    class_by_name = names.map(label_map).astype("Int64")
    return class_by_number.fillna(class_by_name)


def _by_name_alone(
    names: pd.Series,
    class_by_name: pd.Series,
    source: ImageSource,
    class_names: Sequence[str],
    where: str,
) -> pd.Series:
    """Match by name; if the teacher's classes are only numbered, number the sorted names."""
    if class_by_name.notna().any() or not _are_numbers(class_names):
        return class_by_name

    found = sorted(names.dropna().unique())
    if len(found) == len(class_names):
        class_of_name = {name: number for number, name in enumerate(found)}
        return names.map(class_of_name).astype("Int64")
    if source.labels == "truth" and found:
        raise InputError(
            f"{where}: its labels are names ({_listed(found)}) and the teacher's "
            f"{len(class_names)} classes have only numbers, so which images are relevant is "
            "unknown: give label_map, or the teacher's class names"
        )
    return class_by_name


def _check_same_numbering(
    in_range: pd.Series,
    names: pd.Series,
    class_by_name: pd.Series,
    class_names: Sequence[str],
    where: str,
) -> None:
    """Refuse numbers that count other classes than the teacher's.

    They do if images have both a number and a name, and no name agrees with the teacher's name of
    that number.
    """
    is_comparable = (in_range.notna() & names.notna()).to_numpy()
    if _are_numbers(class_names) or not is_comparable.any():
        return
    numbers = in_range[is_comparable]
    numbers_by_name = class_by_name[is_comparable]
    # A name that no class has agrees with none.
    agrees = (numbers == numbers_by_name).fillna(False)
    if not agrees.any():
        number = int(numbers.iloc[0])
        name = names[is_comparable].iloc[0]
        raise InputError(
            f"{where}: its label {number} is {name!r}, the teacher's class {number} is "
            f"{class_names[number]!r}, and no other name agrees either: give label_map (their "
            "label -> class of the teacher), or set labels to 'ignore'"
        )


def _unmatched_message(
    unmatched: pd.DataFrame, source: ImageSource, class_names: Sequence[str], where: str
) -> str:
    problem = "label_map does not list"
    if source.label_map is None:
        problem = "are none of them"
    return (
        f"{where}: the teacher has {len(class_names)} classes ({_listed(class_names)}); the labels "
        f"of {len(unmatched):,} images {problem}: {_found_labels(unmatched)}. Correct the source, "
        "give label_map, or set labels to 'truth' or 'ignore'"
    )


def _distinct_labels(listing: pd.DataFrame) -> set[str]:
    """Return all labels of a listing, numbers as text and names."""
    numbers = listing["label"].astype("str").dropna()
    names = listing["label_name"].dropna()
    return set(numbers) | set(names)


def _found_labels(listing: pd.DataFrame) -> str:
    """Return the labels of a listing with how many images have them, most first."""
    numbers = listing["label"].astype("str")
    # A name says more than a number.
    labels = listing["label_name"].fillna(numbers)
    labels = labels.fillna("no label")
    counts = labels.value_counts()
    described = []
    for label, count in counts.items():
        described.append(f"{label} ({count:,})")
    return _listed(described)


def _listed(names: Sequence[str]) -> str:
    first_names = [visible_name(str(name)) for name in names[:_MAX_NAMED]]
    text = ", ".join(first_names)
    n_more = len(names) - _MAX_NAMED
    if n_more > 0:
        text += f" and {n_more} more"
    return text


def _plain(name: str) -> str:
    """Return a class name without what differs between data sets: case, `_`, `-`, extra spaces."""
    folded = name.casefold()
    spaced = folded.replace("_", " ").replace("-", " ")
    words = spaced.split()
    return " ".join(words)


def _are_numbers(class_names: Sequence[str]) -> bool:
    return all(name.isdigit() for name in class_names)
