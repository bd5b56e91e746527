"""The block `pilot`: what its candidates and lengths may be."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pu_kd_pipeline.params.pilot import PilotParams
from tests.comparison.builders import block_of


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"candidates": {}}, "candidates must name at least one"),
        ({"candidates": {"mixture": None}}, "candidates must name at least one"),
        ({"candidates": {"random": {"rule": "random"}}}, "'random' is the name of a control"),
        ({"candidates": {"a": {"method": "labeled_only"}}}, "only the method `selection`"),
        ({"candidates": {"a": {"rule": "nnpu", "budget": "b"}}}, "budget needs to be a number"),
        (
            {"candidates": {"a": {"rule": "mixture", "objectives": ["kd", "logit_mse"]}}},
            "objectives must name one",
        ),
        ({"candidates": {"a": {"rule": "oracle"}}}, "reads the truth"),
        ({"candidates": {"present parameters": {"rule": "all"}}}, "is the name of a control"),
        (
            {"candidates": {"a": {"rule": "all", "labeled_per_class": [2]}}},
            "a pilot does not read labeled_per_class",
        ),
        (
            {"candidates": {"a": {"rule": "all", "relatedness": {"seed": 1}}}},
            "a pilot does not read relatedness",
        ),
        ({"lengths": [100, 200]}, "lengths has 2 numbers, and n_rounds is 3"),
        ({"lengths": [100, 100, 200]}, "lengths must ascend"),
        ({"lengths": [1, 100, 200]}, "greater than or equal to 10"),
        ({"minutes": 0}, "greater than 0"),
        ({"minuts": 3}, "minuts"),
    ],
)
def test_a_faulty_block_is_refused(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        PilotParams(**{**block_of("pilot"), **changes})


def test_null_leaves_a_candidate_out():
    candidates = {**block_of("pilot")["candidates"], "nnpu": None}
    params = PilotParams(**{**block_of("pilot"), "candidates": candidates})
    assert "nnpu" not in params.chosen
    assert "mixture" in params.chosen
