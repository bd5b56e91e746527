"""The objective of the parameters."""

from __future__ import annotations

from contextlib import ExitStack

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.losses.distillation import OBJECTIVES
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.objectives.base import Objective, ObjectiveContext
from pu_kd_pipeline.training.objectives.feature_matching import FeatureMatchingObjective
from pu_kd_pipeline.training.objectives.latent import LatentObjective
from pu_kd_pipeline.training.objectives.logits import LogitObjective
from pu_kd_pipeline.training.objectives.noisy import NoisyKDObjective


def make_objective(setting: ObjectiveContext, stack: ExitStack) -> Objective:
    """Return the objective of the parameters; hooks that it sets are removed with the stack.

    Raises:
        InputError: it cannot be used with these networks or images.
    """
    try:
        if setting.params.objective in OBJECTIVES:
            return LogitObjective(setting)
        if setting.params.objective == "noisy_kd":
            return NoisyKDObjective(setting)
        if setting.params.objective == "latent":
            return LatentObjective(setting, stack)
        return FeatureMatchingObjective(setting)
    except InputError:
        raise
    except ValueError as exc:
        raise InputError(f"distillation.objective {setting.params.objective!r}: {exc}") from exc


def cacheable(params: DistillationParams) -> DistillationParams:
    """Return the parameters with `teacher_cache` off where the objective looks inside of the teacher."""
    reads_logits_alone = params.objective in (*OBJECTIVES, "noisy_kd")
    return params if reads_logits_alone else params.model_copy(update={"teacher_cache": "off"})
