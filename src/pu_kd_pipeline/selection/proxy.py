"""A student that is distilled to choose images by: where it does not follow the teacher there is something to learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.images.batches import map_images, normalization
from pu_kd_pipeline.images.store import ImageStore, rows_of
from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array
from pu_kd_pipeline.training.checkpoints import unkept
from pu_kd_pipeline.training.distillation import distill

PROXY_UPDATES_SHARE = 0.5  # of the updates that the student gets


@dataclass(frozen=True)
class Proxy:
    """What a proxy is made of: the teacher, what it says of the pool, and the student's own parameters."""

    teacher: Model
    pool_features: ShardedTable
    params: DistillationParams

    def divergence(
        self, manifest: pd.DataFrame, labeled_images: ImageStore, pool_images: ImageStore
    ) -> np.ndarray:
        """Return KL(teacher || proxy) of every pool image, (n,) float32, for a proxy distilled on a manifest.

        The proxy is the student of the objective `kd` with half of its updates. It reads the pool once, shard by shard.
        """
        n_updates = max(1, round(PROXY_UPDATES_SHARE * self.params.n_updates))
        changes = {"objective": "kd", "n_updates": n_updates, "held_out_share": 0.0, "keep": "last"}
        weights = pd.DataFrame(np.ones((1, self.teacher.n_classes)))
        params = self.params.model_copy(update=changes)
        with unkept():
            student, _ = distill(
                manifest, labeled_images, pool_images, self.teacher, weights, params, name="proxy"
            )
        device = prepare_device(params.compute)
        network, normalize = student.network.to(device).eval(), normalization(student, device)
        result = np.empty(len(pool_images), dtype=np.float32)
        for table in self.pool_features.shards(["id", "logits"]):
            rows = rows_of(pool_images, table["id"].to_pandas().to_numpy(), "pool_features")
            batches = map_images(
                lambda x: (network(x),), pool_images, rows, normalize, params.compute
            )
            logits = torch.cat([batch.float() for (batch,) in batches])
            result[rows] = kl_divergence(
                torch.from_numpy(as_array(table["logits"]).copy()), logits
            ).numpy()
        return result
