"""Node functions of the stage `feature_extraction`."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.feature_extraction import FeatureExtractionParams


def extract_features(
    images: ImageStore, teacher: Model, params: FeatureExtractionParams
) -> dict[str, Callable[[], pa.Table]]:
    """Return one function per shard that makes its table.

    The columns are `id`, `descriptor` (D float16) and `logits` (K float32).
    """
    from pu_kd_pipeline.features.extraction import feature_shards

    return feature_shards(images, teacher, params.compute)
