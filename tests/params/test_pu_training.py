"""The block `pu_training`: names of methods that do not exist are refused with those that do."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ValidationError

from pu_kd_pipeline.learning.class_prior.methods import METHODS
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.pu_training import ClassPriorParams, PUTrainingParams
from pu_kd_pipeline.params.validation import fault_messages
from tests.conftest import PROJECT

GOOD = {"method": "bbe", "n_folds": 5, "epochs": 20, "n_bootstrap": 200, "level": 0.9}


class _WithLiteral(BaseModel):
    method: Literal["bbe", "dedpul", "ted", "ted_dedpul", "km2"]


def pu_training():
    return read_parameters(PROJECT / "conf", "base")["pu_training"]


def _error(model, method):
    """Return the error of a model that is given a method it does not have."""
    values = {**GOOD, "method": method}
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(values)
    return refusal.value


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_class_prior_method_is_accepted_by_its_name(method):
    values = {**GOOD, "method": method}
    params = ClassPriorParams(**values)
    assert params.method == method


@pytest.mark.parametrize("method", ["em", "BBE", "", 3, None, ["bbe"], {"bbe": 1}])
def test_an_unknown_method_is_refused_like_a_value_outside_of_a_literal(method):
    error = _error(ClassPriorParams, method)
    [fault] = error.errors(include_url=False)

    # The methods come from a registry, which a Literal cannot; users must not notice.
    error_of_literal = _error(_WithLiteral, method)
    [expected] = error_of_literal.errors(include_url=False)
    assert fault == expected


def test_a_mistyped_method_is_answered_with_the_nearest_and_with_what_each_reads():
    error = _error(ClassPriorParams, "dedpull")
    [sentence] = fault_messages(error, ClassPriorParams, name="prior", where="a.yml")
    assert "input should be 'bbe', 'dedpul', 'ted', 'ted_dedpul' or 'km2'" in sentence
    assert "; did you mean `dedpul`?" in sentence
    assert "km2: reads the features, trains nothing" in sentence


@pytest.mark.parametrize("class_prior", [None, 0.3, "audit", "0.3"])
def test_a_class_prior_is_a_share_an_audit_or_estimated(class_prior):
    block = PUTrainingParams.model_validate({**pu_training(), "class_prior": class_prior})
    assert block.class_prior in (None, 0.3, "audit")


@pytest.mark.parametrize("class_prior", [0, 1, 2, -0.1, float("nan"), "", "audi", [0.3], {}, True])
def test_another_class_prior_is_one_fault(class_prior):
    with pytest.raises(ValidationError) as error:
        PUTrainingParams.model_validate({**pu_training(), "class_prior": class_prior})
    [fault] = error.value.errors()
    assert fault["loc"] == ("class_prior",)
    assert "input should" in fault["msg"]


def test_a_misspelled_audit_is_suggested():
    with pytest.raises(ValidationError, match="did you mean `audit`"):
        PUTrainingParams.model_validate({**pu_training(), "class_prior": "audti"})
