"""Node functions of the stage `feature_extraction`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.feature_extraction import FeatureExtractionParams
from pu_kd_pipeline.params.teacher import TeacherCheckParams, TeacherParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def extract_features(
    images: ImageStore, teacher: Model, params: FeatureExtractionParams, engine: EngineParams
) -> ShardMakers:
    """Return one function per shard that makes its table.

    The columns are `id`, `descriptor` (D float16) and `logits` (K float32).
    """
    from pu_kd_pipeline.features.extraction import feature_shards

    return feature_shards(images, teacher, params.compute).on(engine)


def extract_pool_features(
    images: ImageStore,
    teacher: Model,
    params: FeatureExtractionParams,
    engine: EngineParams,
    teacher_check: dict[str, Any],
) -> ShardMakers:
    """Return the functions of `extract_features`, once the teacher has passed its check."""
    # An input only so that this long stage does not start with a teacher at chance level.
    del teacher_check
    return extract_features(images, teacher, params, engine)


def measure_teacher(
    features: ShardedTable,
    images: ImageStore,
    model: Model,
    teacher: TeacherParams,
    params: TeacherCheckParams,
) -> dict[str, Any]:
    """Return the accuracy of the teacher on the labeled images, and what would improve it.

    Raises:
        InputError: the teacher is at chance level, and `teacher_check.mode` is `stop`.
    """
    from pu_kd_pipeline.features.teacher_advice import report_check
    from pu_kd_pipeline.features.teacher_check import check_on_features

    if params.mode == "off":
        return {"untested": "teacher_check.mode is off"}
    states_input = teacher.input is not None
    check = check_on_features(model, features, images, params, states_input=states_input)
    report_check(check, params.mode)
    return check


def choose_yardstick(
    labeled_images: ImageStore,
    pool_images: ImageStore,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    teacher: Model,
    duplicates: pd.DataFrame,
    params: YardstickParams,
) -> pd.DataFrame:
    """Return the images that every student is measured on, and the teacher's logits for them."""
    from pu_kd_pipeline.selection import yardstick

    return yardstick.choose_yardstick(
        labeled_images,
        pool_images,
        labeled_features,
        pool_features,
        teacher,
        duplicates,
        params,
    )
