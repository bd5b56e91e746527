"""A student that is distilled to choose images by: where it errs there is something to learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.images.batches import map_images, normalization
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams, FinalPhaseParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array
from pu_kd_pipeline.training.checkpoints import checkpoints_disabled
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.shared_logits import SharedTeacherLogits

PROXY_UPDATES_SHARE = 0.5  # of the student's updates


@dataclass(frozen=True)
class Proxy:
    """Distills a proxy student and compares it with the teacher.

    Attributes:
        pool_features: they hold the teacher's logits on the pool.
        params: those of the student, which the proxy shares but for `divergence`'s changes.
        shared_logits: see `distill`.
    """

    teacher: Model
    pool_features: ShardedTable
    params: DistillationParams
    shared_logits: SharedTeacherLogits | None = None

    def divergence(
        self, manifest: pd.DataFrame, labeled_images: ImageStore, pool_images: ImageStore
    ) -> np.ndarray:
        """Return KL(teacher || proxy) on every pool image, for a proxy distilled on a manifest.

        The proxy is the student of the objective `kd` with half of its updates. It reads the pool
        once, shard by shard.

        Returns:
            (n,) float32 in the order of the store.
        """
        student = self._distilled(manifest, labeled_images, pool_images)
        compute = self.params.compute
        device = prepare_device(compute)
        network = student.network.to(device).eval()
        normalize = normalization(student, device, pool_images)

        def predict(images: torch.Tensor) -> tuple[torch.Tensor]:
            return (network(images),)

        result = np.empty(len(pool_images), dtype=np.float32)
        for table in self.pool_features.shards(["id", "logits"]):
            ids = table["id"].to_pandas().to_numpy()
            rows = find_rows(pool_images, ids, "pool_features")
            batches = map_images(predict, pool_images, rows, normalize, compute)
            logits = torch.cat([batch.float() for (batch,) in batches])
            # A copy: torch does not take the read-only memory of the table.
            teacher_logits = torch.from_numpy(as_array(table["logits"]).copy())
            result[rows] = kl_divergence(teacher_logits, logits).numpy()
        return result

    def _distilled(
        self, manifest: pd.DataFrame, labeled_images: ImageStore, pool_images: ImageStore
    ) -> Model:
        n_updates = max(1, round(PROXY_UPDATES_SHARE * self.params.n_updates))
        # Without a yardstick: the student is chosen on it, and the proxy must not be.
        changes = {
            "objective": "kd",
            "n_updates": n_updates,
            "keep": "last",
            # A last phase on labeled images would hide what there is to learn in the pool.
            "final_phase": FinalPhaseParams(),
            "weight_averaging": "none",
        }
        params = self.params.model_copy(update=changes)
        weights = pd.DataFrame(np.ones((1, self.teacher.n_classes)))
        # No checkpoints: they would be those of the student that follows.
        with checkpoints_disabled():
            student, _ = distill(
                manifest,
                labeled_images,
                pool_images,
                self.teacher,
                weights,
                params,
                name="proxy",
                shared_logits=self.shared_logits,
            )
        return student
