"""The rows of a manifest as images and labels to train with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.distillation import DistillationParams


def split_held_out(
    manifest: pd.DataFrame, params: DistillationParams
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to train on and those held out, drawn at random; labeled rows come first."""
    order = np.random.default_rng(params.seed).permutation(len(manifest))
    n_held_out = int(params.held_out_share * len(manifest))
    is_drawn = np.zeros(len(manifest), dtype=bool)
    is_drawn[order[:n_held_out]] = True
    # `manifest_image_rows` puts the images of one store after those of the other: rows and images
    # must be in the same order.
    labeled_first = manifest.assign(is_held_out=is_drawn).sort_values("origin", kind="stable")
    is_held_out = labeled_first["is_held_out"]
    return labeled_first[~is_held_out], labeled_first[is_held_out]


def manifest_image_rows(
    rows: pd.DataFrame, stores: Mapping[str, ImageStore], compute: ComputeParams
) -> ImageRows:
    """Return the images of the rows, in the order of the rows if these are labeled first."""
    parts = []
    for origin, store in stores.items():
        is_of_store = rows["origin"] == origin
        ids = rows["id"][is_of_store].to_numpy()
        positions = find_rows(store, ids, "manifest")
        parts.append((store, positions))
    return ImageRows(parts, compute)


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
