"""Makes a small pool with features, PU scores and relatedness, and prints the names of their files.

Tests that change the code run it with the folder to write to.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.features.scoring import score_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard, PUClassifierCard
from pu_kd_pipeline.models.model import Model, PUClassifier, build_pu_module
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.selection.relatedness import relatedness_shards
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.images.numbered_images import numbered_store
from tests.selection.builders import params_of

COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1, inference_batch_size=8
)
CARD = ModelCard(
    architecture="digits_cnn",
    architecture_options={"width": 2},
    classes=("a", "b", "c"),
    input=InputSpec(size_px=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
)


def small_network(n_classes: int) -> nn.Module:
    """Return a network, as a user's factory does."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, n_classes))


@dataclass(frozen=True)
class MadeFiles:
    """What every shard of a small pool is made from."""

    pool: ImageStore
    teacher: Model
    features: ShardedTable

    @staticmethod
    def in_folder(folder: Path) -> MadeFiles:
        """Make a store of two shards, and its features."""
        pool = numbered_store(folder, range(12))
        with seeded(0):
            network = build_network("digits_cnn", 3, 3, {"width": 2})
        teacher = Model(network.eval(), CARD)
        features = ShardedTable.write(folder / "features", feature_shards(pool, teacher, COMPUTE))
        return MadeFiles(pool, teacher, features)

    def feature_makers(self) -> ShardMakers:
        """Return the makers of the pool's features."""
        return feature_shards(self.pool, self.teacher, COMPUTE)

    def score_makers(self) -> ShardMakers:
        """Return the makers of the scores of a classifier that was not trained."""
        card = PUClassifierCard(
            backbone="frozen",
            features="teacher_outputs",
            descriptor_size=3,
            attention_reduction=None,
            class_prior=0.5,
            teacher=CARD,
            teacher_fingerprint=self.teacher.fingerprint(),
        )
        with seeded(0):
            module = build_pu_module(card)
        return score_shards(self.features, self.pool, PUClassifier(module, card), COMPUTE)

    def relatedness_makers(self) -> ShardMakers:
        """Return the makers of the pool's relatedness."""
        return relatedness_shards(self.pool, self.teacher, params_of())

    def names(self) -> dict[str, str]:
        """Return the name of the first shard of each table, and the maker of the store."""
        return {
            "store": self.pool.specification.maker,
            "features": next(iter(self.feature_makers())),
            "scores": next(iter(self.score_makers())),
            "relatedness": next(iter(self.relatedness_makers())),
        }


if __name__ == "__main__":
    made = MadeFiles.in_folder(Path(sys.argv[1]))
    print(json.dumps(made.names()))
