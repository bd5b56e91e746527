"""The search for a student below a limit of its cost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.evaluation import model_costs
from pu_kd_pipeline.params.pilot import PRESENT
from pu_kd_pipeline.params.student_search import StudentSearchParams
from pu_kd_pipeline.pilot import student_search
from pu_kd_pipeline.pilot.study import command_with, parameters_as_yaml
from pu_kd_pipeline.reporting.student_search_page import render_student_search
from pu_kd_pipeline.storage.table import read_table, write_table
from tests.comparison.builders import BASE, block_of
from tests.pilot.conftest import trial_inputs

LONG_BLOCKS = replace(BASE, distillation=BASE.distillation.model_copy(update={"n_updates": 100}))
FAMILIES = {
    "digits_cnn": {"architectures": ["digits_cnn"], "options": {"width": [2, 4, 8]}},
    "cifar_resnet": {"architectures": ["cifar_resnet"], "options": {"depth": 8, "width": [4, 64]}},
    "torchvision": {"architectures": ["shufflenet_v2_x0_5"]},
}
SHORT = {
    "minutes": 5,
    "max_pool_images": 1500,
    "yardstick_share": 0.3,
    "n_rounds": 2,
    "lengths": [10, 20],
    "latency_repeats": 2,
    "families": FAMILIES,
    # A limit that the wide networks break on every machine.
    "mflops": 0.5,
}


def params_of(**changes: Any) -> StudentSearchParams:
    return StudentSearchParams(**{**block_of("student_search"), "seed": 0, **SHORT, **changes})


def search(inputs: ComparisonInputs, params: StudentSearchParams) -> pd.DataFrame:
    return student_search.run_trials(trial_inputs(inputs, LONG_BLOCKS), params)


def costs_in_order(*arguments: Any) -> dict[str, dict[str, Any]]:
    """Return measured costs, but for the latencies: these grow with the FLOPs."""
    costs = model_costs(*arguments)
    return {name: {**found, "latency_ms": found["flops"] / 1e6} for name, found in costs.items()}


@pytest.fixture(scope="session")
def table(inputs: ComparisonInputs) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        # The measured ones of such small networks may be in any order on a busy machine, and a
        # student that is slower than a larger one is left out.
        patch.setattr(student_search, "model_costs", costs_in_order)
        return search(inputs, params_of())


def test_only_students_that_keep_the_limit_are_trained(table):
    found = student_search.judge_trials(table, LONG_BLOCKS, params_of())
    rows = {student["name"]: student for student in found["students"]}
    assert set(rows) == {
        "digits_cnn, width 2",
        "digits_cnn, width 4",
        "digits_cnn, width 8",
        "cifar_resnet, depth 8, width 4",
        "cifar_resnet, depth 8, width 64",
        "shufflenet_v2_x0_5",
    }
    assert not rows["cifar_resnet, depth 8, width 64"]["keeps_limits"]
    assert "three channels" in rows["shufflenet_v2_x0_5"]["refused"]
    trained = {trial["candidate"] for trial in found["trials"]}
    for name, row in rows.items():
        assert row["is_trained"] == (name in trained)
        if row["is_trained"]:
            assert row["keeps_limits"]
            assert row["costs"]["flops"] <= 0.5e6
    assert rows[found["winner"]]["keeps_limits"]


def test_the_student_of_the_run_is_recognized_and_stays(table):
    # conf/base has digits_cnn of width 4.
    assert table.attrs["present"] == "digits_cnn, width 4"
    by_round = table.groupby("round")["candidate"].agg(set)
    assert all("digits_cnn, width 4" in names for names in by_round)


def test_a_student_of_the_run_above_the_limit_is_compared_and_not_chosen(inputs):
    families = {"digits_cnn": {"architectures": ["digits_cnn"], "options": {"width": [2, 3]}}}
    params = params_of(mflops=0.04, families=families)
    found = student_search.judge_trials(search(inputs, params), LONG_BLOCKS, params)
    assert found["present"] == PRESENT
    assert not found["present_keeps_limits"]
    assert found["winner"] in ("digits_cnn, width 2", "digits_cnn, width 3")
    assert found["parameters"]["distillation"]["student_architecture"] == "digits_cnn"
    assert PRESENT in {trial["candidate"] for trial in found["trials"]}
    page = render_student_search(
        found, parameters_as_yaml(found["parameters"]), command_with(found["parameters"])
    )
    assert "does not keep the limits" in page
    assert found["winner"] in page


def test_parameters_remove_the_options_of_the_present_student():
    student = student_search.Student("a", "b", "cifar_resnet", {"depth": 8})
    parameters = student_search.student_parameters(student, {"width": 4})
    assert parameters["student_options"] == {"depth": 8, "width": None}


def test_the_result_survives_its_file(table, tmp_path):
    write_table(table, tmp_path / "trials.parquet")
    again = read_table(tmp_path / "trials.parquet")
    found = student_search.judge_trials(again, LONG_BLOCKS, params_of())
    assert found == student_search.judge_trials(table, LONG_BLOCKS, params_of())
    json.dumps(found)
    again.attrs["version"] = 0
    with pytest.raises(InputError, match="another version wrote it"):
        student_search.judge_trials(again, LONG_BLOCKS, params_of())


def test_a_limit_is_needed_and_has_to_be_possible(inputs):
    with pytest.raises(InputError, match="there is no limit"):
        search(inputs, params_of(mflops=None))
    with pytest.raises(InputError, match=r"no student keeps mflops 0\.0001; the closest one"):
        search(inputs, params_of(mflops=0.0001))


def test_the_largest_students_of_each_family_are_trained_first():
    students = [
        student_search.Student(f"{family}{size}", family, "x", {})
        for family in ("a", "b")
        for size in (1, 2, 3)
    ]
    costs = {
        student.name: {
            "latency_ms": int(student.name[1]) + (0.5 if student.family == "b" else 0),
            "flops": 10 * int(student.name[1]),
            "parameters": 10 * int(student.name[1]),
        }
        for student in students
    }
    chosen = student_search.largest_of_each(students, costs, 3)
    assert [student.name for student in chosen] == ["a3", "b3", "a2"]
    # A student that is slower than a larger one is not worth a training.
    costs["b1"]["latency_ms"] = 9
    chosen = student_search.largest_of_each(students, costs, 6)
    assert "b1" not in {student.name for student in chosen}


def test_faulty_families_are_refused():
    with pytest.raises(ValueError, match="families must name at least one"):
        params_of(families={"digits_cnn": None})
    with pytest.raises(ValueError, match="architectures"):
        params_of(families={"digits_cnn": {"architectures": []}})
