"""The block `pu_training`: names of methods that do not exist are refused with those that do."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ValidationError

from pu_kd_pipeline.learning.class_prior.methods import METHODS
from pu_kd_pipeline.params.pu_training import ClassPriorParams
from pu_kd_pipeline.params.validation import fault_messages

GOOD = {"method": "bbe", "n_folds": 5, "epochs": 20, "n_bootstrap": 200, "level": 0.9}


class _WithLiteral(BaseModel):
    method: Literal["bbe", "dedpul", "ted", "ted_dedpul", "km2"]


def _error(model, values):
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(values)
    return refusal.value


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_class_prior_method_is_accepted_by_its_name(method):
    assert ClassPriorParams(**GOOD | {"method": method}).method == method


@pytest.mark.parametrize("method", ["em", "BBE", "", 3, None, ["bbe"], {"bbe": 1}])
def test_an_unknown_method_is_refused_like_a_value_outside_of_a_literal(method):
    [fault] = _error(ClassPriorParams, GOOD | {"method": method}).errors(include_url=False)
    [expected] = _error(_WithLiteral, {"method": method}).errors(include_url=False)
    assert fault == expected


def test_a_mistyped_method_is_answered_with_the_nearest_and_with_what_each_reads():
    error = _error(ClassPriorParams, GOOD | {"method": "dedpull"})
    [sentence] = fault_messages(error, ClassPriorParams, name="prior", where="a.yml")
    assert "input should be 'bbe', 'dedpul', 'ted', 'ted_dedpul' or 'km2'" in sentence
    assert "; did you mean `dedpul`?" in sentence
    assert "km2: reads the features, trains nothing" in sentence
