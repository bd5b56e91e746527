"""The images, teacher and features that the tests of comparisons share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.comparison.builders import BASE, block_of, results_of


@pytest.fixture(scope="session")
def blocks() -> Blocks:
    return BASE


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ComparisonInputs:
    """The demo's images, and a teacher that was not trained: comparing needs no good one."""
    folder = tmp_path_factory.mktemp("inputs")
    ingestion = DataIngestionParams(**block_of("data_ingestion"))
    distillation = DistillationParams(**block_of("distillation"))
    # Narrow, because every cell runs this network.
    narrow = block_of("teacher", architecture_options={"width": 8})
    with seeded(0):
        teacher = new_teacher(TeacherParams(**narrow))

    def store_of(part: str) -> ImageStore:
        sources = getattr(ingestion, part)
        plan = IngestionPlan(part, sources, 8, 1, teacher.card.classes, ingestion.store, 0)
        return write_store(plan, folder / part)

    def features_of(images: ImageStore, name: str) -> ShardedTable:
        makers = feature_shards(images, teacher, distillation.compute)
        return ShardedTable.write(folder / name, makers)

    labeled_images = store_of("labeled")
    pool_images = store_of("pool")
    return ComparisonInputs(
        teacher=teacher,
        labeled_images=labeled_images,
        pool_images=pool_images,
        test_images=store_of("test"),
        teacher_training_images=store_of("teacher_training"),
        labeled_features=features_of(labeled_images, "labeled_features"),
        pool_features=features_of(pool_images, "pool_features"),
    )


@pytest.fixture
def results() -> pd.DataFrame:
    """Two seeds of three variants; the second seed of `random` with 5 images is missing."""
    columns = ["variant", "rule", "labeled_per_class", "seed", "accuracy", "auc"]
    rows = [
        ("original", None, None, 0, 0.985, None),
        ("original", None, None, 1, 0.985, None),
        ("pu", "nnpu", 1, 0, 0.90, 0.9),
        ("pu", "nnpu", 1, 1, 0.92, 0.9),
        ("pu", "nnpu", 5, 0, 0.96, 0.9),
        ("pu", "nnpu", 5, 1, 0.96, 0.9),
        ("random", "random", 1, 0, 0.93, None),
        ("random", "random", 1, 1, 0.95, None),
        ("random", "random", 5, 0, 0.95, None),
    ]
    table = pd.DataFrame(rows, columns=columns)
    # The teacher's own training images are the reference: nothing is selected.
    is_reference = table["variant"] == "original"
    table["is_reference"] = is_reference
    table["method"] = np.where(is_reference, "original", "selection")
    table["n_selected"] = np.where(is_reference, 0, 700)
    return results_of(**table)
