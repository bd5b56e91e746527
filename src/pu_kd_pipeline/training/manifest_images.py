"""The rows of a manifest as images and labels to train with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.store import ImageStore, find_rows


def labeled_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with labeled images first, as `manifest_parts` has them."""
    return rows.sort_values("origin", kind="stable")


def manifest_parts(
    rows: pd.DataFrame, stores: Mapping[str, ImageStore]
) -> list[tuple[ImageStore, np.ndarray]]:
    """Return each store with the (n,) rows of its images.

    They are in the order of the manifest's rows if these are labeled first.
    """
    parts = []
    for origin, store in stores.items():
        is_of_store = rows["origin"] == origin
        ids = rows["id"][is_of_store].to_numpy()
        positions = find_rows(store, ids, "manifest")
        parts.append((store, positions))
    return parts


def manifest_labels(rows: pd.DataFrame, labeled: ImageStore) -> np.ndarray:
    """Return (N,) int64 classes of the rows, -1 where unknown.

    The labels of pool images count as unknown, also where the store has them: they are the truth
    that only evaluation may read.
    """
    index = labeled.index
    label_of = pd.Series(index["label"].to_numpy(), index=index["id"])
    is_labeled = (rows["origin"] == "labeled").to_numpy()
    ids = rows["id"][is_labeled]
    # A labeled store may hold images whose labels are ignored: they count as unknown, too.
    known = label_of.reindex(ids).fillna(-1)

    labels = np.full(len(rows), -1, dtype=np.int64)
    labels[is_labeled] = known.to_numpy(dtype=np.int64)
    return labels
