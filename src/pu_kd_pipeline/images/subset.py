"""Some rows of an image store, read like a store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.store import ImageStore


@dataclass(frozen=True, eq=False)
class ImageSubset(ImageStore):
    """Some rows of a store. Length, index, fingerprint and `read` are the subset's; shards are the whole store's."""

    store: ImageStore
    rows: np.ndarray

    @staticmethod
    def of(store: ImageStore, rows: np.ndarray) -> ImageSubset:
        """Return those rows of a store, in that order."""
        return ImageSubset(
            store.folder, store.specification, store.shards, store.quarantine_counts, store, rows
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row an image, as in the store."""
        return self.store.index.iloc[self.rows].reset_index(drop=True)

    @cached_property
    def fingerprint(self) -> str:
        """Of the store and the rows."""
        return hashlib.sha256(self.store.fingerprint.encode() + self.rows.tobytes()).hexdigest()[
            :16
        ]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, C, H, W) uint8 images at (n,) positions among the rows."""
        return self.store.read(self.rows[rows])


def without_images(images: ImageStore, others: ImageStore) -> ImageSubset:
    is_other = images.index["sha256"].isin(others.index["sha256"])
    return ImageSubset.of(images, np.flatnonzero(~is_other.to_numpy()))
