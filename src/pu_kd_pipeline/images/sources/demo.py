"""The embedded digits of the demo."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.sources.base import listing_table


class DemoSource:
    """Digits of scikit-learn; in the part `pool`, letters and photo patches as well."""

    def __init__(self, part: str, seed: int) -> None:
        self._part, self._seed = part, seed

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
