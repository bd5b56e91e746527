"""The yardstick's images: its table, and the stores that hold its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.storage.manifest import ORIGINS
from pu_kd_pipeline.storage.yardstick import teacher_logits, yardstick_fingerprint


@dataclass(frozen=True)
class Yardstick:
    """The images that students are measured on and never learn from.

    Attributes:
        table: `storage.yardstick` describes it.
        stores: by origin. They are not those of a manifest, which may hold fewer images.
    """

    table: pd.DataFrame
    stores: Mapping[str, ImageStore]

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the images and with the teacher."""
        return yardstick_fingerprint(self.table)

    @cached_property
    def parts(self) -> list[tuple[ImageStore, np.ndarray, np.ndarray]]:
        """For each origin the store, and the rows in the store and in the table.

        Raises:
            InputError: an image is in none of the stores, or has other pixels there.
        """
        parts = []
        origins = self.table["origin"].to_numpy()
        for origin in ORIGINS:
            places = np.flatnonzero(origins == origin)
            if not len(places):
                continue
            if origin not in self.stores:
                raise InputError(f"yardstick: it holds {origin} images, and there are none here")
            store = self.stores[origin]
            of_origin = self.table.iloc[places]
            rows = find_rows(store, of_origin["id"].to_numpy(), "yardstick")
            hashes = store.index["sha256"].iloc[rows].to_numpy()
            if (hashes != of_origin["sha256"].to_numpy()).any():
                raise InputError(
                    f"yardstick: {origin}_images hold other pixels than when it was chosen. Run "
                    "the stages from `feature_extraction` on again"
                )
            parts.append((store, rows, places))
        return parts

    def check_apart(self, images: ImageStore, rows: np.ndarray) -> None:
        """Check that none of the images that a student learns from is in the yardstick.

        Images are the same if their pixels are, whatever their store and id.

        Raises:
            InputError: one is.
        """
        learned = images.index.iloc[rows]
        ids = learned["id"][learned["sha256"].isin(self.table["sha256"])]
        if len(ids):
            raise InputError(
                f"manifest: {len(ids):,} of its images are in the yardstick, such as "
                f"{ids.iloc[0]!r}, and a student must not learn from the images that it is "
                "measured on. Run `kedro run --pipeline=subset_materialization` again, or remove "
                "them from a manifest of your own"
            )


def yardstick_logits(
    student: Model, yardstick: Yardstick, compute: ComputeParams
) -> tuple[Tensor, Tensor]:
    """Return the (n, K) float32 logits of teacher and student, in the order of the table.

    Raises:
        InputError: an image is in none of the stores, or has other pixels there.
    """
    of_teacher = torch.from_numpy(teacher_logits(yardstick.table))
    of_student = torch.empty_like(of_teacher)
    for store, rows, places in yardstick.parts:
        images = ImageSubset.of(store, rows)
        of_student[places] = predict_logits(student, images, compute)
    return of_teacher, of_student
