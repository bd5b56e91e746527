"""What the cells of a comparison have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.duplicates import NOTHING_EXCLUDED, Excluded
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset, without_images
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.storage.sharded_table import ShardedTable


@dataclass(frozen=True)
class ComparisonInputs:
    """What all cells have in common."""

    teacher: Model
    labeled_images: ImageStore
    pool_images: ImageStore
    test_images: ImageStore
    teacher_training_images: ImageStore
    labeled_features: ShardedTable
    pool_features: ShardedTable
    watched_images: ImageStore | None = None
    excluded: Excluded = NOTHING_EXCLUDED

    def watching(self, n_images: int) -> ComparisonInputs:
        """Return the inputs with so many of the teacher's training images set aside, as `watched_images`.

        They are drawn among those that have a label and are not in the pool, and are taken out of the others.
        """
        index = self.teacher_training_images.index
        is_free = index["label"].notna() & ~index["sha256"].isin(self.pool_images.index["sha256"])
        free = np.flatnonzero(is_free.to_numpy())
        if n_images >= len(free):
            raise InputError(
                f"comparison.curves.n_images is {n_images:,}, and {len(free):,} of the teacher's training images have "
                "a label and are not in the pool: lower it, or set comparison.curves to null"
            )
        rows = np.sort(np.random.default_rng(0).choice(free, n_images, replace=False))
        watched = ImageSubset.of(self.teacher_training_images, rows)
        return replace(
            self,
            watched_images=watched,
            labeled_images=without_images(self.labeled_images, watched),
            teacher_training_images=without_images(self.teacher_training_images, watched),
        )

    def without_excluded(self) -> ComparisonInputs:
        """Return the inputs without the excluded labeled images; those of the pool are left out by each selection."""
        is_excluded = self.labeled_images.index["id"].isin(self.excluded.labeled).to_numpy()
        if not is_excluded.any():
            return self
        return replace(
            self, labeled_images=ImageSubset.of(self.labeled_images, np.flatnonzero(~is_excluded))
        )

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What the results depend on, by name."""
        names = [
            "labeled_images",
            "pool_images",
            "test_images",
            "labeled_features",
            "pool_features",
        ]
        names += ["watched_images"] if self.watched_images is not None else []
        return {
            "teacher": self.teacher.fingerprint(),
            **{name: getattr(self, name).fingerprint for name in names},
        }


def labeled_rows(images: ImageStore, n_per_class: int, seed: int) -> np.ndarray:
    """Return the ascending rows of `n_per_class` images of each class: the first of the seed's permutation of it.

    A seed's draws of a smaller number are contained in those of a larger one.
    """
    labels = images.index["label"].to_numpy(dtype=np.int64)
    drawn = [
        np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))[
            :n_per_class
        ]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)
