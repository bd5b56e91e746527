"""Which images of a source are used, and as which class of the teacher: labels, shares, and seeded draws.

Tables in, tables out; no image is read here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource

_MOST_NAMED = 10  # offenders that a message lists
logger = logging.getLogger(__name__)


def in_share(ids: pd.Series, share: tuple[float, float]) -> np.ndarray:
    """Return (N,) bool: the hash of the id, spread over [0, 1), falls in [from, to).

    The hash depends on nothing but the id, so disjoint shares of one source never overlap, whatever the seed.
    """
    if share == (0.0, 1.0):
        return np.ones(len(ids), dtype=bool)
    digests = b"".join(
        hashlib.blake2b(image_id.encode(), digest_size=8).digest() for image_id in ids
    )
    # 53 bits are what a float64 holds: more would round the largest hash up to 1
    position = (np.frombuffer(digests, dtype=">u8") >> np.uint64(11)).astype(np.float64) / 2**53
    return (position >= share[0]) & (position < share[1])


def draw(
    labels: pd.Series,
    per_class: int | None,
    limit: int | None,
    rng: np.random.Generator,
    n_classes: int,
) -> np.ndarray:
    """Return the ascending positions that are kept: `per_class` of each class, then `limit` of all, drawn at random.

    The draws of a smaller number are contained in those of a larger one. Images of no class are left to `limit`.
    A class with fewer images gives what it has.
    """
    kept = np.arange(len(labels))
    if per_class is not None:
        classes = labels.fillna(-1).to_numpy(dtype=np.int64)
        drawn = [
            rng.permutation(kept[classes == number])[:per_class] for number in range(n_classes)
        ]
        kept = np.sort(np.concatenate([kept[classes < 0], *drawn]))
    if limit is not None:
        kept = np.sort(rng.permutation(kept)[:limit])
    return kept


def without_labels(listing: pd.DataFrame, labels: Sequence[int | str], where: str) -> pd.DataFrame:
    """Return the rows of a listing whose own label or class name is none of `labels`.

    Raises:
        InputError: no image has one of these labels.
    """
    excluded = {str(label) for label in labels}
    numbers, names = listing["label"].astype("str"), listing["label_name"]
    found = set(numbers.dropna()) | set(names.dropna())
    if absent := excluded - found:
        raise InputError(
            f"{where}: no image has the labels {_listed(sorted(absent))} of exclude_labels; found: "
            f"{_found_labels(listing)}"
        )
    return listing[~(numbers.isin(excluded) | names.isin(excluded)).to_numpy(dtype=bool)]


def with_teacher_labels(
    listing: pd.DataFrame, source: ImageSource, class_names: Sequence[str], where: str
) -> pd.DataFrame:
    """Return the listing with `label` (Int32, class of the teacher or null) and `relevant` (boolean or null).

    Images that `exclude_labels` names are left out.

    Args:
        listing: rows of a source, with its own `label` (Int64 or null) and `label_name` (string or null).
        source: its parameters, of which `labels`, `label_map` and `exclude_labels` matter here.
        class_names: names of the teacher's classes 0..K-1.
        where: what a message calls the source.

    Raises:
        InputError: with `labels: classes`, an image has no class of the teacher; or the labels cannot be understood.
    """
    if source.exclude_labels:
        listing = without_labels(listing, source.exclude_labels, where)
    table = listing.copy()
    if source.labels == "ignore":
        table["label"] = pd.array([None] * len(table), dtype="Int32")
        table["relevant"] = pd.array([None] * len(table), dtype="boolean")
        return table
    classes = _classes(listing, source, class_names, where)
    is_labeled = listing["label"].notna() | listing["label_name"].notna()
    if source.labels == "classes" and classes.isna().any():
        raise InputError(
            _without_class(listing[classes.isna().to_numpy()], source, class_names, where)
        )
    table["label"] = classes.astype("Int32")
    table["relevant"] = classes.notna().astype("boolean").where(is_labeled)
    return table


def check_every_class_is_there(labels: pd.Series, class_names: Sequence[str], where: str) -> None:
    """Raise an InputError that names the classes without a single image."""
    absent = sorted(set(range(len(class_names))) - set(labels.dropna().astype(int)))
    if absent:
        named = ", ".join(f"{number} ({class_names[number]})" for number in absent[:_MOST_NAMED])
        raise InputError(
            f"{where}: `per_class` asks for images of every class of the teacher, and there is none of class {named}. "
            "Add images of it, or correct `label_map` or the teacher's `classes`"
        )


def _classes(
    listing: pd.DataFrame, source: ImageSource, class_names: Sequence[str], where: str
) -> pd.Series:
    """Return the teacher's class of every row, null where it has none (Int64)."""
    if source.label_map is not None:
        return _by_map(listing, source.label_map, len(class_names), where)
    numbers, names = listing["label"], listing["label_name"]
    by_name = {_plain(name): number for number, name in enumerate(class_names)}
    named = names.map(lambda name: by_name.get(_plain(name)), na_action="ignore").astype("Int64")
    if numbers.isna().all():
        return _by_name_alone(names, named, source, class_names, where)
    if named.notna().all():
        return named  # the names are the teacher's, so its order holds, whatever the source's
    in_range = numbers.where((numbers >= 0) & (numbers < len(class_names)))
    _check_same_numbering(in_range, names, named, class_names, where)
    return in_range


def _by_map(
    listing: pd.DataFrame, label_map: Mapping[str, int], n_classes: int, where: str
) -> pd.Series:
    outside = {key: number for key, number in label_map.items() if not 0 <= number < n_classes}
    if outside:
        raise InputError(
            f"{where}: label_map leads to classes outside 0..{n_classes - 1} of the teacher: {outside}"
        )
    names, numbers = listing["label_name"], listing["label"].astype("str")
    absent = [key for key in label_map if not ((names == key) | (numbers == key)).any()]
    if label_map and len(absent) == len(label_map):
        raise InputError(
            f"{where}: no key of label_map ({_listed(absent)}) is a label there; found: {_found_labels(listing)}"
        )
    if absent:
        logger.warning("%s: no image has these labels of label_map: %s", where, _listed(absent))
    return numbers.map(label_map).astype("Int64").fillna(names.map(label_map).astype("Int64"))


def _by_name_alone(
    names: pd.Series, named: pd.Series, source: ImageSource, class_names: Sequence[str], where: str
) -> pd.Series:
    """Match names; where the teacher's classes are only numbered, take the sorted names as 0..K-1."""
    if named.notna().any() or not _are_numbers(class_names):
        return named
    found = sorted(names.dropna().unique())
    if len(found) == len(class_names):
        return names.map({name: number for number, name in enumerate(found)}).astype("Int64")
    if source.labels == "truth" and found:
        raise InputError(
            f"{where}: its labels are names ({_listed(found)}) and the teacher's {len(class_names)} classes have only "
            "numbers, so which images are relevant is unknown: give label_map, or the teacher's class names"
        )
    return named


def _check_same_numbering(
    in_range: pd.Series, names: pd.Series, named: pd.Series, class_names: Sequence[str], where: str
) -> None:
    """Refuse numbers that count other classes than the teacher's: not one name agrees where both have names."""
    is_comparable = (in_range.notna() & names.notna()).to_numpy()
    if _are_numbers(class_names) or not is_comparable.any():
        return
    if not (in_range[is_comparable] == named[is_comparable]).fillna(False).any():
        number, name = int(in_range[is_comparable].iloc[0]), names[is_comparable].iloc[0]
        raise InputError(
            f"{where}: its label {number} is {name!r}, the teacher's class {number} is {class_names[number]!r}, and no "
            "other name agrees either: give label_map (their label -> class of the teacher), or set labels to 'ignore'"
        )


def _without_class(
    unmatched: pd.DataFrame, source: ImageSource, class_names: Sequence[str], where: str
) -> str:
    mend = "label_map does not list" if source.label_map is not None else "are none of them"
    return (
        f"{where}: the teacher has {len(class_names)} classes ({_listed(class_names)}); the labels of "
        f"{len(unmatched):,} images {mend}: {_found_labels(unmatched)}. Correct the source, give label_map, or set "
        "labels to 'truth' or 'ignore'"
    )


def _found_labels(listing: pd.DataFrame) -> str:
    labels = listing["label_name"].fillna(listing["label"].astype("str")).fillna("no label")
    return _listed([f"{label} ({count:,})" for label, count in labels.value_counts().items()])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(str(name) for name in names[:_MOST_NAMED]) + more


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _are_numbers(class_names: Sequence[str]) -> bool:
    return all(name.isdigit() for name in class_names)
