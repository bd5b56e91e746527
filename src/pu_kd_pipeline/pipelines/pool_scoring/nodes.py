"""What the stage `pool_scoring` does."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.model_files import PUClassifier
from pu_kd_pipeline.infra.sharded_table import ShardedTable
from pu_kd_pipeline.params import PoolScoringParams


def score_pool(
    pool_features: ShardedTable, pool_images: ImageStore, classifier: PUClassifier, params: PoolScoringParams
) -> dict[str, Callable[[], pa.Table]]:
    """Return one maker a shard: `id`, `pu_score`, `teacher_class` and `teacher_confidence` of the clean views."""
    from pu_kd_pipeline.infra.features import score_shards

    return score_shards(pool_features, pool_images, classifier, params.compute)
