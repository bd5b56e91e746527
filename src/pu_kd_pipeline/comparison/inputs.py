"""What the cells of a comparison share: the teacher, the images and their features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.grid import Cell
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.duplicates import NOTHING_EXCLUDED, Excluded
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset, without_images
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.comparison import METHODS
from pu_kd_pipeline.storage.sharded_table import ShardedTable


@dataclass(frozen=True)
class ComparisonInputs:
    """What all cells share.

    Attributes:
        watched_images: images that no student learns from; curves are measured on them.
        excluded: copies of test images and the yardstick, by id.
        yardstick: the images that every student is measured on.
    """

    teacher: Model
    labeled_images: ImageStore
    pool_images: ImageStore
    test_images: ImageStore
    teacher_training_images: ImageStore
    labeled_features: ShardedTable
    pool_features: ShardedTable
    watched_images: ImageStore | None = None
    excluded: Excluded = NOTHING_EXCLUDED
    yardstick: Yardstick | None = None

    def watching(self, n_images: int) -> ComparisonInputs:
        """Return the inputs with some of the teacher's training images as `watched_images`.

        They are drawn among those that have a label and are not in the pool, and are removed from
        the other stores.

        Raises:
            InputError: there are not enough of them.
        """
        index = self.teacher_training_images.index
        pool_hashes = self.pool_images.index["sha256"]
        is_in_pool = index["sha256"].isin(pool_hashes)
        has_label = index["label"].notna()
        is_free = has_label & ~is_in_pool
        free = np.flatnonzero(is_free.to_numpy())
        if n_images >= len(free):
            raise InputError(
                f"comparison.curves.n_images is {n_images:,}, and {len(free):,} of the teacher's "
                "training images have a label and are not in the pool: lower it, "
                "or set comparison.curves to null"
            )
        # One seed for all comparisons: their curves are then of the same images.
        rng = np.random.default_rng(0)
        drawn = rng.choice(free, n_images, replace=False)
        rows = np.sort(drawn)
        watched = ImageSubset.of(self.teacher_training_images, rows)
        # A student that learned from a watched image would show too good a curve.
        labeled_images = without_images(self.labeled_images, watched)
        teacher_training_images = without_images(self.teacher_training_images, watched)
        return replace(
            self,
            watched_images=watched,
            labeled_images=labeled_images,
            teacher_training_images=teacher_training_images,
        )

    def without_excluded(self) -> ComparisonInputs:
        """Return the inputs without the excluded labeled images.

        The teacher's training images lose those with the pixels of a yardstick image. Excluded pool
        images stay: each selection leaves them out.
        """
        ids = self.labeled_images.index["id"]
        is_excluded = ids.isin(self.excluded.all_labeled)
        labeled_images = _without_rows(self.labeled_images, is_excluded)
        original_images = self.teacher_training_images
        if self.yardstick is not None:
            is_measured = original_images.index["sha256"].isin(self.yardstick.table["sha256"])
            original_images = _without_rows(original_images, is_measured)
        return replace(self, labeled_images=labeled_images, teacher_training_images=original_images)

    @property
    def yardstick_fingerprint(self) -> str | None:
        """The fingerprint of the yardstick; None if students are not measured."""
        if self.yardstick is None or not len(self.yardstick):
            return None
        return self.yardstick.fingerprint

    def cell_labeled_images(self, cell: Cell) -> ImageStore:
        """Return the images that a cell uses as labeled ones; empty where its method uses none."""
        source = METHODS[cell.method].labeled_images
        if source == "original":
            return self.teacher_training_images
        if source == "none":
            no_rows = np.empty(0, dtype=np.int64)
            return ImageSubset.of(self.labeled_images, no_rows)
        assert cell.labeled_per_class is not None
        rows = labeled_rows(self.labeled_images, cell.labeled_per_class, cell.seed)
        return ImageSubset.of(self.labeled_images, rows)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Name of an input -> fingerprint, for all that every result depends on."""
        fingerprints = {
            "teacher": self.teacher.fingerprint(),
            "labeled_images": self.labeled_images.fingerprint,
            "pool_images": self.pool_images.fingerprint,
            "test_images": self.test_images.fingerprint,
            "labeled_features": self.labeled_features.fingerprint,
            "pool_features": self.pool_features.fingerprint,
        }
        if self.watched_images is not None:
            fingerprints["watched_images"] = self.watched_images.fingerprint
        return fingerprints


def _without_rows(images: ImageStore, is_left_out: pd.Series) -> ImageStore:
    """Return the other images of a store, or the store itself if none is left out."""
    if not is_left_out.any():
        return images  # a subset has another fingerprint, which would rename finished cells
    rows = np.flatnonzero(~is_left_out.to_numpy())
    return ImageSubset.of(images, rows)


def labeled_rows(images: ImageStore, n_per_class: int, seed: int) -> np.ndarray:
    """Return the ascending rows of images of each class: the first of the class's permutation.

    A seed's draws of a smaller number are contained in those of a larger one.
    """
    labels = images.index["label"].to_numpy(dtype=np.int64)
    drawn = []
    for label in np.unique(labels):
        # A generator per class: the draw of one class does not depend on the size of another.
        rng = np.random.default_rng([seed, int(label)])
        of_class = np.flatnonzero(labels == label)
        rows = rng.permutation(of_class)
        drawn.append(rows[:n_per_class])
    all_rows = np.concatenate(drawn)
    return np.sort(all_rows).astype(np.int64)
