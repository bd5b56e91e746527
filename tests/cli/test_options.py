"""Which pipelines a command runs."""

from __future__ import annotations

from typing import Any

import pytest

from pu_kd_pipeline.cli.options import with_pipeline


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["full"]),
        ({"pipeline": None, "pipelines": []}, ["full"]),
        ({"pipeline": "full"}, ["full"]),
        ({"pipeline": "__default__"}, ["full"]),
        ({"pipelines": ["__default__", "comparison"]}, ["full", "comparison"]),
        ({"pipeline": "teacher"}, ["teacher"]),
        ({"pipelines": ["teacher", "evaluation"]}, ["teacher", "evaluation"]),
    ],
)
def test_a_run_without_a_name_is_the_run_of_full(
    given: dict[str, Any], expected: list[str]
) -> None:
    options = with_pipeline({**given, "env": "x"})

    assert options == {"pipeline": None, "pipelines": expected, "env": "x"}


def test_two_ways_to_name_pipelines_are_left_to_kedro_which_refuses_them() -> None:
    options = {"pipeline": "teacher", "pipelines": ["evaluation"]}
    assert with_pipeline(options) == options
