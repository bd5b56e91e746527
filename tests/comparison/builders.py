"""What the tests of comparisons build: parameter blocks of conf/base, grids and results."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.comparison.computation import RESULT
from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable

PROJECT = Path(__file__).resolve().parents[2]


COMPUTE = {
    "device": "cpu",
    "precision": "float32",
    "n_threads": 1,
    "resident_limit_gb": 1.0,
    "inference_batch_size": 1024,
}


@cache
def _parameters() -> dict[str, Any]:
    return read_parameters(PROJECT / "conf", "base")


def block_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return a block of conf/base with changes, computed on one thread of the CPU."""
    block = {**_parameters()[name], **changes}
    if "compute" in block and "compute" not in changes:
        block["compute"] = COMPUTE
    return block


def _base_blocks() -> Blocks:
    # As small as tests can be, and large enough that every part does something.
    prior = block_of("pu_training")["prior_estimation"]
    prior = {**prior, "n_folds": 2, "epochs": 2, "n_bootstrap": 20}
    pu_training = block_of("pu_training", epochs=2, held_out_folds=0, prior_estimation=prior)
    distillation = block_of("distillation", n_updates=8, record_every=4, batch_size=32)
    relatedness = block_of("relatedness", n_noise_images=200)
    return Blocks(
        PUTrainingParams(**pu_training),
        SubsetParams(**block_of("subset_materialization")),
        ClassWeightingParams(**block_of("class_weighting")),
        DistillationParams(**distillation),
        RelatednessParams(**relatedness),
    )


BASE = _base_blocks()


def demo_inputs(folder: Path) -> ComparisonInputs:
    """Return the demo's images and a teacher that was not trained: comparing needs no good one."""
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


def grid(**changes: Any) -> ComparisonParams:
    given = {
        "title": "a comparison",
        "labeled_per_class": [2, 4],
        "seeds": [0, 1],
        "objectives": ["robust_kd"],
        "sweeps": {},
        "hint_share": 0.5,
        "every_variant": {},
        "variants": {
            "pu": {"rule": "nnpu", "criterion": "quantile"},
            "random": {"rule": "random", "budget": "pu"},
        },
        **changes,
    }
    return ComparisonParams.model_validate(given)


def results_of(**columns: Any) -> pd.DataFrame:
    """Return results as a comparison writes them; columns that are not given are null or usual."""
    n_rows = len(columns["accuracy"])
    table: dict[str, Any] = {name: [None] * n_rows for name in RESULT.names}
    table.update(objective="kd", n_updates=100, teacher_accuracy=0.99, n_test=500)
    table.update(is_reference=False)
    table.update(columns)
    frame = pd.DataFrame(table)
    # Through Arrow, so that the types are those of a file that was read.
    return pa.Table.from_pandas(frame, schema=RESULT, preserve_index=False).to_pandas()


def sweep_points() -> pd.DataFrame:
    """Return the results of a sweep: two sizes of one line by two objectives, one of another."""
    return results_of(
        variant=["small", "large", "small", "large", "top"],
        method=["selection"] * 5,
        rule=["random"] * 4 + ["nnpu"],
        objective=["kd", "kd", "robust_kd", "robust_kd", "kd"],
        labeled_per_class=[1] * 5,
        seed=[0] * 5,
        accuracy=[0.8, 0.9, 0.85, 0.95, 0.7],
        n_selected=[10, 100, 10, 100, 10],
    )


def _sweep_variant(line: str, at: int) -> dict[str, Any]:
    point = {"name": "size", "line": line, "at": at}
    return {"rule": "random", "budget": at, "labeled_per_class": [1], "sweep": point}


def sweep_grid() -> ComparisonParams:
    """Return the comparison whose sweep has those points; another sweep has none."""
    return grid(
        title="Sizes",
        labeled_per_class=[1, 5],
        sweeps={"size": "images", "unused": "nothing"},
        variants={
            "small": _sweep_variant("random", 10),
            "large": _sweep_variant("random", 100),
            "top": _sweep_variant("nnpu", 10),
        },
    )


def curve_results() -> pd.DataFrame:
    """Return results with curves; the third seed of `pu` failed and has none."""
    updates = [50, 100]
    return results_of(
        variant=["pu", "pu", "pu", "random", "random", "other"],
        method=["selection"] * 6,
        rule=["nnpu"] * 6,
        labeled_per_class=[1] * 6,
        seed=[0, 1, 2, 0, 1, 0],
        accuracy=[0.9, 0.9, None, 0.8, 0.8, 0.7],
        curve_updates=[updates, updates, None, updates, updates, updates],
        curve_accuracy=[[0.5, 0.9], [0.7, 0.9], None, [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]],
        note=[None, "it won", "it won again", None, None, None],
    )


def curve_grid() -> ComparisonParams:
    """Return the comparison with panels of those curves; one panel has no curve."""
    variant = {"rule": "random", "budget": 10}
    panels = {"Two": ["pu", "random", "left_out"], "One": ["other"], "No": ["left_out"]}
    return grid(
        title="Curves",
        labeled_per_class=[1],
        variants={"pu": variant, "random": variant, "other": variant, "left_out": None},
        curves={"n_images": 10, "panels": panels},
    )


def with_preferential(results: pd.DataFrame, accuracy: float) -> pd.DataFrame:
    """Return results with another row: a method that uses no labeled image."""
    row = results_of(
        variant=["preferential"],
        method=["preferential"],
        rule=[None],
        labeled_per_class=[None],
        seed=[0],
        accuracy=[accuracy],
        n_selected=[700],
    )
    return pd.concat([results, row], ignore_index=True)
