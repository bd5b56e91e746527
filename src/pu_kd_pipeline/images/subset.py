"""Some rows of an image store, read like a store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Shard


@dataclass(frozen=True, eq=False)
class ImageSubset(ImageStore):
    """Some rows of a store.

    Length, index, fingerprint and `read` are the subset's; the shards are the whole store's.
    """

    store: ImageStore
    rows: np.ndarray

    @staticmethod
    def of(store: ImageStore, rows: np.ndarray) -> ImageSubset:
        """Return (n,) rows of a store, in that order."""
        return ImageSubset(
            folder=store.folder,
            specification=store.specification,
            shards=store.shards,
            quarantine_counts=store.quarantine_counts,
            store=store,
            rows=rows,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per image, as in the store."""
        index = self.store.index.iloc[self.rows]
        return index.reset_index(drop=True)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the store and with the rows."""
        content = self.store.fingerprint.encode() + self.rows.tobytes()
        digest = hashlib.sha256(content)
        return digest.hexdigest()[:16]

    def pixel_bytes(self, rows: np.ndarray) -> int:
        """Return the bytes of the files that hold the images at positions among the rows."""
        return self.store.pixel_bytes(self.rows[rows])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, C, H, W) uint8 images at (n,) positions among the rows."""
        store_rows = self.rows[rows]
        return self.store.read(store_rows)


@dataclass(frozen=True, eq=False)
class ImageSample(ImageSubset):
    """Some rows of a store, as a store of one shard, for what is computed shard by shard."""

    @staticmethod
    def of(store: ImageStore, rows: np.ndarray) -> ImageSample:
        """Return (n,) rows of a store, in that order."""
        whole = Shard("sample", n=len(rows), start=0)
        return ImageSample(
            folder=store.folder,
            specification=store.specification,
            shards=(whole,),
            quarantine_counts=store.quarantine_counts,
            store=store,
            rows=rows,
        )

    def shard_ids(self, shard: Shard) -> pa.Array:
        """Return the ids of all rows: there is one shard."""
        return pa.array(self.index["id"], pa.string())


def without_images(images: ImageStore, others: ImageStore) -> ImageSubset:
    """Return the images of a store whose pixels are not also in another store."""
    # By the hash of the pixels: two stores may call the same image by different ids.
    other_hashes = others.index["sha256"]
    is_other = images.index["sha256"].isin(other_hashes)
    kept_rows = np.flatnonzero(~is_other.to_numpy())
    return ImageSubset.of(images, kept_rows)
