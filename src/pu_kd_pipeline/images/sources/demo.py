"""The embedded digits of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.sources.base import listing_table

if TYPE_CHECKING:
    from pu_kd_pipeline.images.sources.demo_images import DemoPart
    from pu_kd_pipeline.params.data_ingestion import ImageSource


class DemoSource:
    """Digits of scikit-learn; in the part `pool`, letters and photo patches as well."""

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._part = str(source.part)
        self._seed = seed

    @staticmethod
    def state(source: ImageSource) -> str:
        """Return nothing: the images are made by code, whose changes are detected as such."""
        return ""

    def listing(self) -> pd.DataFrame:
        part = self._images()
        is_digit = part.labels >= 0
        labels = pd.Series(part.labels, dtype="Int64")
        labels = labels.where(is_digit)  # null for the others

        # The seed draws letters and patches, but a digit is the same in every split.
        versions = np.where(is_digit, "1", f"1.{self._seed}")
        positions = np.arange(len(part.ids))
        return listing_table(
            part.ids, labels, part.label_names, versions.tolist(), position=positions
        )

    def read(self, rows: pd.DataFrame) -> Iterator[np.ndarray]:
        part = self._images()
        positions = rows["position"].to_numpy()
        yield from part.images[positions]

    def why_not_shared(self, n_images: int) -> str | None:
        return None

    def _images(self) -> DemoPart:
        # imported late: scikit-learn takes seconds, and most runs have other sources
        from pu_kd_pipeline.images.sources.demo_images import demo_part

        return demo_part(self._part, self._seed)
