"""The stages of the pipeline: committed files are up to date, and the order is complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.deployment.stages import Stage, with_direct_needs
from tests.deployment.builders import (
    DOCKER,
    PROJECT,
    everything_before,
)


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["compose"], "compose.yaml"),
        (["compose", "--gpu"], "compose.gpu.yaml"),
        (["argo"], "kustomize/base/workflow-template.yaml"),
    ],
)
def test_committed_files_are_those_of_the_pipeline(
    arguments: list[str], file: str, tmp_path: Path
) -> None:
    made = tmp_path / Path(file).name
    kedro = [sys.executable, "-m", "kedro"]
    command = [*kedro, "containers", *arguments, f"--out={made}"]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)

    # Operators use the committed files, which must follow each change of the pipeline.
    expected = made.read_text()
    committed = (DOCKER / file).read_text()
    assert committed == expected, f"run `make manifests`: {file} is outdated"


def test_only_saved_datasets_cross_a_stage(survey: dict[str, Any]) -> None:
    crossing = set(survey["crossing"])
    saved = set(survey["saved"])
    # Far fewer would mean that the survey misses datasets.
    assert len(crossing) > 15
    assert crossing <= saved
    for name in crossing:
        assert "Memory" not in survey["types"][name], name


@st.composite
def stages_without_cycles(draw: st.DrawFn) -> list[Stage]:
    """Return stages that need only stages before them."""
    stages: list[Stage] = []
    names: list[str] = []
    n_stages = draw(st.integers(1, 9))
    for number in range(n_stages):
        needs: set[str] = set()
        if names:
            some_names = st.sets(st.sampled_from(names))
            needs = draw(some_names)
        name = f"s{number}"
        stage = Stage(name, tuple(sorted(needs)))
        stages.append(stage)
        names.append(name)
    return stages


def stage_needs(stages: list[Stage]) -> dict[str, list[str]]:
    needs = {}
    for stage in stages:
        needs[stage.name] = list(stage.needs)
    return needs


@given(stages=stages_without_cycles())
def test_direct_needs_imply_all_needs_and_none_is_redundant(stages: list[Stage]) -> None:
    given_needs = stage_needs(stages)
    # Reversed, because stages may be given in any order.
    direct_needs = stage_needs(with_direct_needs(reversed(stages)))
    assert direct_needs.keys() == given_needs.keys()

    for name, needs in direct_needs.items():
        implied = everything_before(direct_needs, name)
        assert implied == everything_before(given_needs, name)
        # Each direct need adds something: without it less would be implied.
        for need in needs:
            others = [other for other in needs if other != need]
            without_need = {**direct_needs, name: others}
            assert everything_before(without_need, name) != implied


@given(stages=stages_without_cycles())
def test_stages_come_after_those_that_they_need(stages: list[Stage]) -> None:
    finished: set[str] = set()
    # Reversed: the order that is given is the worst.
    ordered = with_direct_needs(reversed(stages))
    for stage in ordered:
        needed = set(stage.needs)
        assert needed <= finished
        finished.add(stage.name)


def test_stages_that_wait_for_each_other_are_refused() -> None:
    first = Stage("a", ("b",))
    second = Stage("b", ("a",))
    with pytest.raises(ValueError, match="cycle"):
        with_direct_needs([first, second])
