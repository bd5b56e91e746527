"""The objectives that exist and those that parameters offer are the same."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.params.distillation import OPTION_BLOCKS
from pu_kd_pipeline.training.distillation import distill_original
from pu_kd_pipeline.training.objectives.factory import (
    OBJECTIVES,
    check_logit_objectives,
    check_objectives,
)


def test_every_objective_of_the_parameters_is_implemented():
    implemented = set(OBJECTIVES)
    configurable = set(OPTION_BLOCKS)
    assert implemented == configurable


def test_an_objective_without_implementation_is_refused_with_the_place_to_add_it():
    configurable = [*OPTION_BLOCKS, "new"]
    with pytest.raises(TypeError, match="'new' has parameters .*add it to OBJECTIVES in training"):
        check_objectives(OBJECTIVES, configurable)


def test_an_objective_without_parameters_is_refused_with_the_place_to_add_them():
    implemented = [*OBJECTIVES, "new"]
    with pytest.raises(TypeError, match="'new' is implemented .*ObjectiveParams in params/distill"):
        check_objectives(implemented, OPTION_BLOCKS)


def test_an_objective_with_the_loss_of_another_one_is_refused():
    # As it happens where an entry is copied and its loss forgotten.
    objectives = {**OBJECTIVES, "new": OBJECTIVES["kd"]}
    option_blocks = {**OPTION_BLOCKS, "new": ()}
    with pytest.raises(TypeError, match="'kd' and 'new' train the same loss"):
        check_logit_objectives(objectives, option_blocks)


def test_options_that_no_class_reads_are_refused():
    option_blocks = {**OPTION_BLOCKS, "kd": ("gate",)}
    with pytest.raises(TypeError, match="'kd' has the options gate, which LogitObjective does not"):
        check_logit_objectives(OBJECTIVES, option_blocks)


def test_an_unknown_objective_does_not_train_another_one(digits):
    # model_copy does not validate, so that an unknown name can get this far.
    params = digits.params(n_updates=1)
    unknown = params.model_copy(update={"objective": "new"})
    with pytest.raises(KeyError, match="new"):
        distill_original(digits.labeled, digits.teacher, unknown, "student")
