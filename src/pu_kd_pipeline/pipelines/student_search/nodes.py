"""Node functions of the stage `student_search`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.student_search import StudentSearchParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def search_students(
    teacher: Model,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    test_images: ImageStore,
    duplicates: pd.DataFrame,
    labeled_features: ShardedTable,
    teacher_check: dict[str, Any],
    pu_training: PUTrainingParams,
    subset_materialization: SubsetParams,
    class_weighting: ClassWeightingParams,
    distillation: DistillationParams,
    relatedness: RelatednessParams,
    yardstick: YardstickParams,
    engine: EngineParams,
    params: StudentSearchParams,
) -> pd.DataFrame:
    """Return one row per short training, and in the attrs the students and their costs."""
    from pu_kd_pipeline.comparison.grid import Blocks
    from pu_kd_pipeline.pilot import student_search
    from pu_kd_pipeline.pilot.inputs import TrialInputs

    blocks = Blocks(pu_training, subset_materialization, class_weighting, distillation, relatedness)
    # An input only so that no search starts with a teacher at chance level.
    del teacher_check
    inputs = TrialInputs(
        teacher,
        labeled_images,
        pool_images,
        test_images,
        duplicates,
        labeled_features,
        yardstick,
        blocks,
        engine,
    )
    return student_search.run_trials(inputs, params)


def judge_students(
    trials: pd.DataFrame,
    pu_training: PUTrainingParams,
    subset_materialization: SubsetParams,
    class_weighting: ClassWeightingParams,
    distillation: DistillationParams,
    relatedness: RelatednessParams,
    params: StudentSearchParams,
) -> tuple[dict[str, Any], str, str]:
    """Return what the trials show, the parameters of the winner as YAML, and the page."""
    from pu_kd_pipeline.comparison.grid import Blocks
    from pu_kd_pipeline.pilot import student_search
    from pu_kd_pipeline.pilot.study import command_with, parameters_as_yaml
    from pu_kd_pipeline.reporting.student_search_page import render_student_search

    blocks = Blocks(pu_training, subset_materialization, class_weighting, distillation, relatedness)
    found = student_search.judge_trials(trials, blocks, params)
    parameters = parameters_as_yaml(found["parameters"])
    command = command_with(found["parameters"])
    return found, parameters, render_student_search(found, parameters, command)
