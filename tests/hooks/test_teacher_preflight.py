"""The teacher is tested before a run, once: the result is kept until something changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog, MemoryDataset

from pu_kd_pipeline.datasets import FolderDataset
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks import teacher_preflight
from pu_kd_pipeline.hooks.teacher_preflight import preflight_teacher
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.teacher import TeacherCheckParams, TeacherParams

PROJECT = Path(__file__).parents[2]
CHANCE = {
    "accuracy": 0.1,
    "lower": 0.05,
    "upper": 0.2,
    "chance": 0.1,
    "n_images": 100,
    "is_refused": True,
    "advice": ["That is no better than chance"],
}
GOOD = {**CHANCE, "accuracy": 0.9, "is_refused": False, "advice": []}


class Run:
    """What the hook is given, and how often it tested."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parameters = read_parameters(PROJECT / "conf", "base")
        self.weights = folder / "weights.bin"
        self.weights.write_text("first")
        image = folder / "labeled" / "0" / "a.png"
        image.parent.mkdir(parents=True)
        image.write_text("an image")
        self.image = image
        source = {"type": "folder", "path": str(folder / "labeled"), "labels": "classes"}
        self.ingestion = {**parameters["data_ingestion"], "labeled": [source]}
        self.teacher = {**parameters["teacher"], "weights": str(self.weights)}
        self.params = dict(parameters["teacher_check"])
        self.outputs = {"labeled_images"}
        self.result = GOOD
        self.n_tests = 0
        self.records = folder / "node_records"
        monkeypatch.setattr(teacher_preflight, "_new_check", self._test)

    def _test(self, *_):
        self.n_tests += 1
        return self.result

    def __call__(self) -> int:
        """Run the hook, and return how often it has tested so far."""
        datasets = {
            "params:teacher_check": MemoryDataset(self.params),
            "node_records": FolderDataset(filepath=str(self.records)),
        }
        blocks = {
            "teacher": TeacherParams.model_validate(self.teacher),
            "data_ingestion": DataIngestionParams.model_validate(self.ingestion),
        }
        pipeline = SimpleNamespace(all_outputs=lambda: self.outputs)
        preflight_teacher(pipeline, DataCatalog(datasets), blocks)
        return self.n_tests


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Run(tmp_path, monkeypatch)


def test_a_run_that_changes_nothing_does_not_test_again(run):
    assert run() == 1
    assert run() == 1


def test_changed_weights_are_tested_again(run):
    run()
    run.weights.write_text("other")
    assert run() == 2


def test_changed_images_are_tested_again(run):
    run()
    (run.image.parent / "b.png").write_text("another image")
    assert run() == 2


@pytest.mark.parametrize("block", ["teacher", "ingestion", "params"])
def test_changed_parameters_are_tested_again(run, block):
    run()
    changes = {
        "teacher": {"classes": list("abcdefghij")},
        "ingestion": {"seed": 7},
        "params": {"max_images": 50},
    }
    getattr(run, block).update(changes[block])
    assert run() == 2


def test_a_damaged_result_is_made_again(run):
    run()
    (run.records / teacher_preflight.RESULT).write_text("{}")
    assert run() == 2


def test_a_kept_result_still_stops_the_run_and_the_mode_is_not_part_of_it(run, caplog):
    run.result = CHANCE
    for _ in range(2):
        with pytest.raises(InputError, match="no better than chance"):
            run()
    run.params["mode"] = "warn"

    assert run() == 1
    assert "no better than chance" in caplog.text


def test_nothing_is_tested_if_that_is_turned_off(run):
    # YAML reads `off` without quotes as false.
    for mode in ("off", False):
        run.params["mode"] = mode
        assert run() == 0


def test_a_teacher_that_is_trained_in_the_run_is_not_tested_before(run):
    run.teacher["weights"] = None
    assert run() == 0


def test_a_stage_that_ingests_no_labeled_image_does_not_test(run):
    run.outputs = {"teacher_model"}
    assert run() == 0


def test_the_block_is_typed_also_where_no_node_reads_it(run):
    run.params["mode"] = "sometimes"
    message = "parameters_teacher.yml: `teacher_check.mode` is 'sometimes'"
    with pytest.raises(InputError, match=message):
        run()
    assert TeacherCheckParams.model_fields["mode"].default == "stop"
