"""The embedded digits of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.sources.base import listing_table

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource


class DemoSource:
    """Digits of scikit-learn; in the part `pool`, letters and photo patches as well."""

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._part = str(source.part)
        self._seed = seed

    @staticmethod
    def state(source: ImageSource) -> str:
        """Return nothing: the images are made by code, and code has digests of its own."""
        return ""

    def listing(self) -> pd.DataFrame:
        from pu_kd_pipeline.images.sources.demo_images import demo_part

        part = demo_part(self._part, self._seed)
        labels = pd.Series(part.labels, dtype="Int64").where(part.labels >= 0)
        # negatives are drawn by the seed; a digit is the same in every split
        versions = ["1" if is_digit else f"1.{self._seed}" for is_digit in part.labels >= 0]
        return listing_table(
            part.ids, labels, part.label_names, versions, position=np.arange(len(part.ids))
        )

    def read(self, rows: pd.DataFrame) -> Iterator[np.ndarray]:
        from pu_kd_pipeline.images.sources.demo_images import demo_part

        yield from demo_part(self._part, self._seed).images[rows["position"].to_numpy()]
