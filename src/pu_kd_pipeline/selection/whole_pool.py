"""The second control: the student of the whole pool, with the student's updates and labeled share.

Many images that are each shown a few times are what a user has without any selection, and for long
trainings they are better than a strict cut.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.selection.class_weights import compute_class_weights
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.objectives.factory import OBJECTIVES
from pu_kd_pipeline.training.worker_teams import by_workers

NOT_TRAINED = "not_trained"  # in `origin` of a card: why there is no student


def distill_whole_pool(
    inputs: SubsetInputs,
    manifest: pd.DataFrame,
    features: tuple[ShardedTable, ShardedTable],
    teacher: Model,
    subset: SubsetParams,
    weighting: ClassWeightingParams,
    params: DistillationParams,
    yardstick: Yardstick | None,
    name: str,
) -> tuple[Model, pd.DataFrame]:
    """Return the student of the whole pool, and its history.

    Args:
        inputs: labeled and pool images, and the scores of the pool.
        manifest: that of the student; where `params.labeled_share` is null, its share of labeled
            images is that of the control's batches.
        features: of the labeled and the pool images, for the class weights.
        teacher: of both students.
        subset: the seed, and whether copies of test images are left out.
        weighting: how classes are weighted, where the objective needs it.
        params: of the student.
        yardstick: that of the student; its images are excluded in `inputs`.
        name: of the training.
    """
    everything = subset.model_copy(update={"rule": "all", "budget": None})
    whole_pool = choose_subset(inputs, everything)
    share = params.labeled_share
    if share is None:
        share = manifest_labeled_share(manifest)
    params = params.model_copy(update={"labeled_share": share})
    vectors = pd.DataFrame(np.ones((1, teacher.n_classes)))
    if OBJECTIVES[params.objective].needs_class_weights:
        labeled_features, pool_features = features
        classes = teacher.card.classes
        _, vectors = compute_class_weights(
            whole_pool, labeled_features, pool_features, classes, weighting
        )
    train = by_workers(distill, params.training_workers, params.compute, name)
    return train(
        whole_pool,
        inputs.labeled_images,
        inputs.pool_images,
        teacher,
        vectors,
        params,
        name,
        yardstick=yardstick,
    )


def manifest_labeled_share(manifest: pd.DataFrame) -> float | None:
    """Return the share of labeled images; None where all images are of one origin."""
    share = float((manifest["origin"] == "labeled").mean())
    if not 0.0 < share < 1.0:
        return None
    return share


def untrained_control(teacher: Model, params: DistillationParams) -> tuple[Model, pd.DataFrame]:
    """Return a network that was not trained, whose card says so, and a history without rows."""
    origin = {NOT_TRAINED: "random_baseline.whole_pool is false"}
    with seeded(params.seed):
        model = new_student(teacher, params.student_architecture, params.student_options, origin)
    history = pd.DataFrame({"update": pd.Series(dtype="float64")})
    return Model(model.network.eval(), model.card), history
