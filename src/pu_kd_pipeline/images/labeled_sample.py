"""A few labeled images, read from their sources before any store is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.images.ingestion import read_images
from pu_kd_pipeline.images.listing import Reader, list_images
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.params.teacher import InputSpec

Draw = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class LabeledSample:
    """Images that a store of labeled images would hold, and their classes.

    Attributes:
        rows: of `list_images`.
        readers: of `list_images`.
        plan: of the store.
    """

    rows: pd.DataFrame
    readers: list[Reader]
    plan: IngestionPlan

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 classes of the teacher."""
        return self.rows["label"].to_numpy(dtype=np.int64)

    def decode(self, spec: InputSpec, *, in_processes: bool = False) -> list[np.ndarray | Unusable]:
        """Return the (C, H, W) uint8 pixels of each image, or why there are none.

        Args:
            spec: the size and how images are brought to it.
            in_processes: decode in other processes, which an image may crash.
        """
        decoder = Decoder(
            spec.channels,
            spec.size_px,
            self.plan.store.max_image_pixels,
            spec.shorter_side_px,
            spec.interpolation,
        )
        decode_all = decoder.decode_all
        if in_processes:
            decode_all = decoder.decode_all_in_processes
        raws = read_images(self.rows, self.readers)
        return [pixels for _, pixels in decode_all(raws, self.plan.store.n_workers)]


def draw_labeled(plan: IngestionPlan, n: int, draw: Draw) -> LabeledSample:
    """Return at most `n` images of a plan that have a class of the teacher; no image is read.

    Args:
        plan: of the labeled images.
        n: most images.
        draw: returns the ascending positions of at most n of (N,) labels.

    Raises:
        InputError: a source cannot be used.
    """
    wanted, readers = list_images(plan)
    is_labeled = wanted["label"].notna() & wanted["fault"].isna()
    labeled = wanted[is_labeled]
    labels = labeled["label"].to_numpy(dtype=np.int64)
    positions = draw(labels, n)
    return LabeledSample(labeled.iloc[positions], readers, plan)
