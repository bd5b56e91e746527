"""Node functions of the stage `pilot`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.pilot import PilotParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def run_trials(
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
    params: PilotParams,
) -> pd.DataFrame:
    """Return one row per short training, and in the attrs what was measured on the way."""
    from pu_kd_pipeline.comparison.grid import Blocks
    from pu_kd_pipeline.pilot import study
    from pu_kd_pipeline.pilot.inputs import TrialInputs

    blocks = Blocks(pu_training, subset_materialization, class_weighting, distillation, relatedness)
    # An input only so that no pilot starts with a teacher at chance level.
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
    return study.run_trials(inputs, params)


def judge_trials(
    trials: pd.DataFrame,
    pu_training: PUTrainingParams,
    subset_materialization: SubsetParams,
    class_weighting: ClassWeightingParams,
    distillation: DistillationParams,
    relatedness: RelatednessParams,
    params: PilotParams,
) -> tuple[dict[str, Any], str, str]:
    """Return what the trials show, the recommended parameters as YAML, and the page."""
    from pu_kd_pipeline.comparison.grid import Blocks
    from pu_kd_pipeline.pilot import study
    from pu_kd_pipeline.reporting.pilot_page import render_pilot

    blocks = Blocks(pu_training, subset_materialization, class_weighting, distillation, relatedness)
    found = study.judge_trials(trials, blocks, params)
    parameters = study.parameters_as_yaml(found["parameters"])
    command = study.command_with(found["parameters"])
    return found, parameters, render_pilot(found, parameters, command)
