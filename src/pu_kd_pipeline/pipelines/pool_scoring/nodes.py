"""Node functions of the stage `pool_scoring`."""

from __future__ import annotations

from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import PUClassifier
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.pool_scoring import PoolScoringParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def score_pool(
    pool_features: ShardedTable,
    pool_images: ImageStore,
    classifier: PUClassifier,
    params: PoolScoringParams,
    engine: EngineParams,
) -> ShardMakers:
    """Return one function per shard that scores its images, without augmentation.

    The columns are `id`, `pu_score`, `teacher_class`, `teacher_confidence` and `teacher_log_odds`,
    which orders images as the confidence does and does not saturate.
    """
    from pu_kd_pipeline.features.scoring import score_shards

    return score_shards(pool_features, pool_images, classifier, params.compute).on(engine)
