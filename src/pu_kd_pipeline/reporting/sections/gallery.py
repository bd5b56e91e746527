"""What was selected, class by class, next to labeled images and rejected neighbors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.reporting.contact_sheet import strips_of
from pu_kd_pipeline.reporting.sections.album import LABELED, Album, Strip, Thumb
from pu_kd_pipeline.reporting.sections.pool import Pool, spread

if TYPE_CHECKING:
    import pandas as pd

    from pu_kd_pipeline.images.store import ImageStore

MAX_CLASSES = 12
N_LABELED = 5
N_SELECTED = 10
N_REJECTED = 5
MAX_RANKED = 60  # in each block of the ranking; the figure of the contact sheet has all of them


@dataclass(frozen=True)
class ClassImages:
    """The images of one class of the teacher."""

    name: str
    n_labeled: int
    n_pool: int
    """Pool images that the teacher takes for the class."""
    n_selected: int
    reasons: str
    """How many of the selected were selected for which reason."""
    strips: list[Strip]


@dataclass(frozen=True)
class Gallery:
    """The classes that are shown, and the names of the others."""

    classes: list[ClassImages]
    n_classes: int
    empty: list[str]
    """Classes of which nothing was selected."""
    is_uneven: bool
    how: str
    """How the shown images were chosen, in one sentence."""


def selected_by_class(
    pool: Pool, manifest: pd.DataFrame, labeled_images: ImageStore | None, album: Album
) -> Gallery:
    """Return the images of the classes, most selected first.

    Of more classes than `MAX_CLASSES`, those with most and those with fewest selected images are
    returned, and one heading says so.

    Args:
        pool: the pool images.
        manifest: its labeled images are shown.
        labeled_images: where they are; None: the run has none.
        album: gets the images.
    """
    labeled = _labeled_by_class(manifest, labeled_images)
    n_classes = len(pool.class_names)
    n_selected = np.bincount(pool.classes[pool.is_selected], minlength=n_classes)[:n_classes]
    order = np.argsort(-n_selected, kind="stable")
    filled = [int(index) for index in order if n_selected[index]]
    empty = [pool.class_name(int(index)) for index in order if not n_selected[index]]
    shown = filled
    if len(filled) > MAX_CLASSES:
        half = MAX_CLASSES // 2
        shown = filled[:half] + filled[-half:]
    classes = []
    for index in shown:
        classes.append(_class_images(pool, index, labeled.get(index, []), album))
    return Gallery(classes, n_classes, empty, pool.is_uneven, _how(pool))


def _how(pool: Pool) -> str:
    rejected = "not selected"
    if pool.is_uneven:
        rejected = "not drawn more often than evenly"
    return (
        "Selected images are evenly spaced over how often they are drawn, from the highest "
        f"{pool.score_name} to the lowest. Rejected neighbors are the images of the class with "
        f"the highest {pool.score_name} that were {rejected}."
    )


def _labeled_by_class(
    manifest: pd.DataFrame, labeled_images: ImageStore | None
) -> dict[int, list[str]]:
    """Return the ids of the labeled images of the manifest by class; those without one are not."""
    if labeled_images is None:
        return {}
    index = labeled_images.index
    if "label" not in index:
        return {}
    ids = manifest.loc[manifest["origin"] == "labeled", "id"]
    kept = index[index["id"].isin(ids) & index["label"].notna()]
    by_class: dict[int, list[str]] = {}
    for identifier, label in zip(kept["id"], kept["label"], strict=True):
        by_class.setdefault(int(label), []).append(str(identifier))
    return by_class


def _class_images(pool: Pool, index: int, labeled_ids: list[str], album: Album) -> ClassImages:
    is_class = pool.classes == index
    rows = np.flatnonzero(is_class)
    # Images without a score come last.
    ranked = rows[np.argsort(-pool.scores[rows], kind="stable")]
    selected = ranked[pool.is_selected[ranked]]
    is_scored = np.isfinite(pool.scores[ranked])
    rejected = ranked[is_scored & ~pool.is_selected[ranked] & ~pool.is_excluded[ranked]]
    name = pool.class_name(index)

    shown = spread(selected, pool.probability[selected], N_SELECTED)
    title = "drawn more often" if pool.is_uneven else "selected"
    reasons = _counted_reasons(pool, selected)
    thumbs = pool.thumbs(album, shown, shows_reason=len(reasons) > 1)
    strips = [Strip(title, "selected", thumbs)]
    if labeled_ids:
        places = spread(np.arange(len(labeled_ids)), np.ones(len(labeled_ids)), N_LABELED)
        thumbs = [_labeled_thumb(album, labeled_ids[place], name) for place in places]
        strips.append(Strip("labeled", "labeled", thumbs))
    if len(rejected):
        nearest = pool.thumbs(album, rejected[:N_REJECTED])
        strips.append(Strip("rejected neighbors", "rejected", nearest))
    return ClassImages(
        name,
        len(labeled_ids),
        int(is_class.sum()),
        len(selected),
        ", ".join(reasons),
        strips,
    )


def _labeled_thumb(album: Album, identifier: str, name: str) -> Thumb:
    facts = {"label": name, "selected": "yes, labeled images always are", "reason": "labeled"}
    number = album.add(LABELED, identifier, facts)
    return Thumb(number, (), f"labeled image {identifier} of the class {name}")


def _counted_reasons(pool: Pool, rows: np.ndarray) -> list[str]:
    """Return the most frequent reasons, each with the number of its images."""
    counts = Counter(reason for reason in pool.reasons[rows] if reason is not None)
    named = [f"{reason} ({count:,})" for reason, count in counts.most_common(3)]
    n_others = len(counts) - len(named)
    if n_others > 0:
        named.append(f"{n_others:,} more reasons")
    return named


def ranking(pool: Pool, rule: str | None, n_images: int, album: Album) -> list[Strip]:
    """Return the best, borderline and worst images of the pool, as the contact sheet has them.

    Args:
        pool: the pool images.
        rule: name of the rule.
        n_images: number of images in each block, of which at most `MAX_RANKED` are shown.
        album: gets the images.
    """
    strips = []
    n_images = min(n_images, MAX_RANKED)
    for strip in strips_of(pool.scores, pool.is_selected, pool.is_excluded, rule, n_images):
        thumbs = pool.thumbs(album, strip.rows)
        strips.append(Strip(strip.heading, "ranked", thumbs))
    return strips


def counts_by_class(
    pool: Pool, manifest: pd.DataFrame, labeled_images: ImageStore | None
) -> Mapping[str, np.ndarray]:
    """Return what each class has, each (K,): images, and its share of the draws of pool images.

    The numbers of images are `labeled`, `pool` and `selected`; `draws` is a share in [0, 1].
    """
    n_classes = len(pool.class_names)
    labeled = np.zeros(n_classes, dtype=np.int64)
    for index, ids in _labeled_by_class(manifest, labeled_images).items():
        if index < n_classes:
            labeled[index] = len(ids)
    draws = np.nan_to_num(pool.probability)
    return {
        "labeled": labeled,
        "pool": np.bincount(pool.classes, minlength=n_classes)[:n_classes],
        "selected": np.bincount(pool.classes[pool.is_selected], minlength=n_classes)[:n_classes],
        "draws": np.bincount(pool.classes, draws, minlength=n_classes)[:n_classes],
    }
