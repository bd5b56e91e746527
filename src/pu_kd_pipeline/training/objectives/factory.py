"""All objectives, and the one that the parameters choose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.losses.distillation import (
    kd,
    logit_mse,
    standardized_kd,
)
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.distillation import OPTION_BLOCKS, DistillationParams
from pu_kd_pipeline.training.objectives.base import Objective, ObjectiveContext, ObjectiveType
from pu_kd_pipeline.training.objectives.feature_matching import FeatureMatchingObjective
from pu_kd_pipeline.training.objectives.latent import LatentObjective
from pu_kd_pipeline.training.objectives.logits import LogitObjective
from pu_kd_pipeline.training.objectives.noisy import NoisyKDObjective
from pu_kd_pipeline.training.objectives.robust import RobustKDObjective

# Everything that other modules need to know of an objective stands in its entry: nothing else in
# the code may compare the names of objectives.
OBJECTIVES: dict[str, ObjectiveType] = {
    "kd": ObjectiveType(
        partial(LogitObjective, kd), reads_teacher_logits_only=True, needs_class_weights=False
    ),
    "robust_kd": ObjectiveType(
        RobustKDObjective, reads_teacher_logits_only=True, needs_class_weights=True
    ),
    "standardized_kd": ObjectiveType(
        partial(LogitObjective, standardized_kd),
        reads_teacher_logits_only=True,
        needs_class_weights=False,
    ),
    "logit_mse": ObjectiveType(
        partial(LogitObjective, logit_mse),
        reads_teacher_logits_only=True,
        needs_class_weights=False,
    ),
    "noisy_kd": ObjectiveType(
        NoisyKDObjective, reads_teacher_logits_only=True, needs_class_weights=False
    ),
    "latent": ObjectiveType(
        LatentObjective, reads_teacher_logits_only=False, needs_class_weights=False
    ),
    "attention": ObjectiveType(
        FeatureMatchingObjective, reads_teacher_logits_only=False, needs_class_weights=False
    ),
    "pu_critic": ObjectiveType(
        FeatureMatchingObjective, reads_teacher_logits_only=False, needs_class_weights=False
    ),
}


def check_objectives(implemented: Collection[str], configurable: Collection[str]) -> None:
    """Check that the objectives which are implemented are those that the parameters offer.

    The parameters are a lower layer and cannot import the implementations, so that the names stand
    in both places.

    Args:
        implemented: the names in `OBJECTIVES`.
        configurable: the names in `params.distillation.ObjectiveParams`.

    Raises:
        TypeError: the names differ; says where the missing one belongs.
    """
    for name in configurable:
        if name not in implemented:
            raise TypeError(
                f"the objective {name!r} has parameters (ObjectiveParams in "
                "params/distillation.py) and no "
                "implementation: add it to OBJECTIVES in training/objectives/factory.py"
            )
    for name in implemented:
        if name not in configurable:
            raise TypeError(
                f"the objective {name!r} is implemented (OBJECTIVES in "
                "training/objectives/factory.py) and has no parameters: add a class for it to "
                "ObjectiveParams in params/distillation.py"
            )


def check_logit_objectives(
    objectives: Mapping[str, ObjectiveType], option_blocks: Mapping[str, Collection[str]]
) -> None:
    """Check that every objective on logits has a loss of its own, and no options it ignores.

    Raises:
        TypeError: two objectives train the same, or the options of one would not be read.
    """
    name_by_loss: dict[object, str] = {}
    for name, objective in objectives.items():
        make = objective.make
        if not isinstance(make, partial) or make.func is not LogitObjective:
            continue
        (loss,) = make.args
        if loss in name_by_loss:
            raise TypeError(
                f"the objectives {name_by_loss[loss]!r} and {name!r} train the same loss: give "
                "one of them another in OBJECTIVES of training/objectives/factory.py"
            )
        name_by_loss[loss] = name
        if option_blocks[name]:
            raise TypeError(
                f"the objective {name!r} has the options {', '.join(option_blocks[name])}, which "
                "LogitObjective does not read: give it a class of its own in training/objectives"
            )


check_objectives(OBJECTIVES, OPTION_BLOCKS)
check_logit_objectives(OBJECTIVES, OPTION_BLOCKS)


def check_without_class_weights(params: DistillationParams, block: str) -> None:
    """Check that the chosen objective can do without class weights.

    Args:
        params: the block's values.
        block: the name of the block, for the message.

    Raises:
        InputError: it needs them.
    """
    if OBJECTIVES[params.objective].needs_class_weights:
        raise InputError(
            f"{block}.objective: {params.objective!r} belongs to labeled and selected images; "
            "choose another one"
        )


def check_weighting_fits_rule(weighting: ClassWeightingParams, rule: str, objective: str) -> None:
    """Check that a selection rule leaves it to the class weights how often classes are drawn.

    Args:
        weighting: the block `class_weighting`.
        rule: of the manifest.
        objective: that the student learns by.

    Raises:
        InputError: both decide it.
    """
    if weighting.mode != "balanced" or not OBJECTIVES[objective].needs_class_weights:
        return
    if rule in RULES and RULES[rule].draws_unevenly:
        raise InputError(
            f"class_weighting.mode: 'balanced' draws classes evenly, and the rule {rule!r} draws "
            "pool images in a way of its own: choose another mode, or another rule"
        )


def make_objective(context: ObjectiveContext) -> Objective:
    """Return the objective that the parameters choose.

    Raises:
        InputError: it cannot be used with these networks or images.
    """
    name = context.params.objective
    try:
        return OBJECTIVES[name].make(context, context.params.objective_params)
    except InputError:
        # It is a ValueError too, and names the key already.
        raise
    except ValueError as exc:
        raise InputError(f"distillation.objective {name!r}: {exc}") from exc
