"""What short trainings read."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.pilot import HalvingParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.pilot.costs import n_shared_views
from pu_kd_pipeline.pilot.sample import PoolSample, draw_sample
from pu_kd_pipeline.storage.sharded_table import ShardedTable


@dataclass(frozen=True)
class TrialInputs:
    """What short trainings read.

    Attributes:
        teacher: the network to compress.
        labeled_images: those of the run, with a label each; students learn from those that are not
            measured on.
        pool_images: the whole pool, of which a sample is read.
        test_images: only their number and their copies count; no student answers for one.
        duplicates: copies in several stores.
        labeled_features: of the labeled images, by the teacher.
        yardstick: how the measured images are drawn.
        blocks: those of the run, which candidates override.
        engine: who trains.
    """

    teacher: Model
    labeled_images: ImageStore
    pool_images: ImageStore
    test_images: ImageStore
    duplicates: pd.DataFrame
    labeled_features: ShardedTable
    yardstick: YardstickParams
    blocks: Blocks
    engine: EngineParams = LOCAL

    def check(self, key: str) -> None:
        """Check what would be found out late: the labels, and whose the features are.

        Args:
            key: of the parameters, for messages.

        Raises:
            InputError: labels are missing, or another teacher made the features.
        """
        check_labeled(self.labeled_images, key)
        check_teacher(self.labeled_features, self.teacher.fingerprint(), "labeled_features")

    def draw_sample(self, params: HalvingParams) -> PoolSample:
        """Return a sample of the pool, see `sample.draw_sample`."""
        distillation = self.blocks.distillation
        return draw_sample(
            self.pool_images,
            self.teacher,
            distillation.compute,
            params,
            n_shared_views(distillation),
        )


def check_labeled(images: ImageStore, key: str) -> None:
    """Check that students have labeled images to learn from.

    Raises:
        InputError: there are none, or some have no label.
    """
    if not len(images) or images.index["label"].isna().any():
        raise InputError(
            f"{key}: students need labeled images, with a label each, that are neither measured on "
            "nor copies of test images: set `labels: classes` on the sources of "
            "data_ingestion.labeled, or add images"
        )
