"""The block `class_weighting`: its modes, and the keys of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.contradictions import contradictions
from pu_kd_pipeline.params.class_weighting import MODES, ClassWeightingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.validation import check_parameters
from tests.comparison.builders import block_of
from tests.training.scene import params_with


def params_of(**changes: Any) -> ClassWeightingParams:
    return ClassWeightingParams.model_validate(block_of("class_weighting", **changes))


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_reads_its_own_block(mode: str) -> None:
    unread = params_of(mode=mode).unread_keys()
    assert mode not in unread
    assert {"shrunk", "balanced", "adjusted", "paper"} - {mode} <= unread
    assert ("relative_epsilon" in unread) == (mode == "paper")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"clip": [0.1, 10.0]},
            "the key `class_weighting.clip` is now `paper.clip` \\(and `shrunk.clip`\\)",
        ),
        (
            {"epsilon": 0.3},
            "the key `class_weighting.epsilon` is now `paper.epsilon` in the mode paper and "
            "`relative_epsilon`",
        ),
        (
            {"mode": "released"},
            "`class_weighting.mode` is 'released': this is now class_weighting.paper.perturbation: "
            "set that to released",
        ),
        ({"mode": "shrinked"}, "did you mean `shrunk`"),
        ({"relative_epsilon": 1.0}, "`class_weighting.relative_epsilon` is 1.0"),
        (
            {"shrunk": {"smoothing": 1.0, "clip": [1.5, 2.0]}},
            "`class_weighting.shrunk.clip`.*0 < low <= 1 <= high",
        ),
    ],
)
def test_former_keys_and_wrong_values_are_refused_with_what_to_write(
    changes: dict[str, Any], message: str
) -> None:
    block = block_of("class_weighting", **changes)
    with pytest.raises(InputError, match=message):
        check_parameters(
            {"class_weighting": block},
            {"class_weighting": ClassWeightingParams},
            files={"class_weighting": Path("weights.yml")},
            given={},
        )


def test_factors_below_one_are_refused() -> None:
    with pytest.raises(ValidationError):
        params_of(balanced={"max_factor": 0.5})


@pytest.mark.parametrize(
    ("mode", "rule", "objective", "n_faults"),
    [
        ("balanced", "mixture", "robust_kd", 1),
        ("balanced", "rolling", "robust_kd", 1),
        ("balanced", "nnpu", "robust_kd", 0),
        ("balanced", "mixture", "kd", 0),
        ("shrunk", "mixture", "robust_kd", 0),
    ],
)
def test_two_ways_to_draw_contradict_each_other(
    mode: str, rule: str, objective: str, n_faults: int
) -> None:
    blocks = {
        "class_weighting": params_of(mode=mode),
        "subset_materialization": SubsetParams.model_validate(
            block_of("subset_materialization", rule=rule)
        ),
        "distillation": params_with(objective=objective),
    }
    faults = list(contradictions(blocks))
    assert len(faults) == n_faults
    assert all("'balanced' draws classes evenly" in fault for fault in faults)
