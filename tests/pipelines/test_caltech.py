"""conf/caltech, a real teacher and real photos, with a few images and updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.teacher import TeacherCheckParams, TeacherParams
from tests.conftest import PROJECT, require_caltech_packages, run_kedro

# With these, a run takes seconds of computing: 120 labeled and test images, 60 of the pool.
FEW = (
    "pu_training.held_out_folds=2",
    "distillation.n_updates=2",
    "distillation.record_every=2",
    "distillation.batch_size=4",
    "distillation.teacher_cache='off'",
    "subset_materialization.budget=20",
)


NORMALIZATIONS = {
    "right": ({}, None),
    "ImageNet's": ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, 153 / 160),
}
RIGHT = "mean 127/255 and std 128/255"


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("changes", "accuracy"), NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_the_labeled_photos_show_a_wrong_normalization(
    changes: dict[str, Any],
    accuracy: float | None,
    data_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_caltech_packages()
    monkeypatch.setenv("PU_KD_DATA", str(data_folder))
    check = check_of_labeled_photos(changes)

    assert check["verdict"] == "usable"
    assert check["n_images"] == 160
    if accuracy is None:
        assert check["accuracy"] == pytest.approx(154 / 160, abs=0.01)
        assert check["advice"] == []
        return
    # One answer less than with the right one, so that accuracy proves nothing.
    assert check["accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert check["better_alternatives"] == []
    assert check["larger_margins"][0]["name"] == RIGHT
    assert f"with {RIGHT}, the labels stand out more clearly" in check["advice"][0]
    assert "set teacher.input: {mean: [0.49804, 0.49804, 0.49804]" in check["advice"][1]


def check_of_labeled_photos(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the check before the first stage, with another input of the teacher."""
    from pu_kd_pipeline.features.teacher_preflight import check_on_sources
    from pu_kd_pipeline.models.factory import new_teacher

    blocks = read_parameters(PROJECT / "conf", "caltech")
    content = blocks["teacher"]
    content = {**content, "input": {**content["input"], **changes}}
    teacher = TeacherParams.model_validate(content)
    ingestion = DataIngestionParams.model_validate(blocks["data_ingestion"])
    params = TeacherCheckParams.model_validate(blocks["teacher_check"])
    return check_on_sources(new_teacher(teacher), ingestion, teacher, params)


@pytest.mark.data
@pytest.mark.slow
def test_the_environment_runs_to_the_end_and_its_teacher_is_right(
    data_folder: Path, tmp_path: Path
) -> None:
    require_caltech_packages()
    conf = few_images(tmp_path)
    result = run_kedro(
        *("--pipeline=full", "--env=caltech", f"--conf-source={conf}"),
        data=tmp_path / "data",
        params=FEW,
        PU_KD_DATA=str(data_folder),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = json.loads((tmp_path / "data/08_reporting/metrics.json").read_text())
    # Of all 280 test images it is 97.1 %.
    assert metrics["teacher"]["accuracy"] == pytest.approx(77 / 80, abs=0.005)
    assert metrics["student"]["flops"] < metrics["teacher"]["flops"] / 5
    selection = metrics["selection"]
    assert selection["n_pool"] == 60
    # So few epochs of the PU classifier say nothing of its quality, only that the truth is known.
    assert 0 <= selection["auc"] <= 1
    assert 0 <= selection["precision"] <= 1


def few_images(folder: Path) -> Path:
    """Return a copy of conf/ in which the environment has few labeled, test and pool images."""
    conf = folder / "conf"
    for name in ("base", "caltech"):
        shutil.copytree(PROJECT / "conf" / name, conf / name)
    shutil.copy(PROJECT / "conf" / "logging.yml", conf)
    file = conf / "caltech" / "parameters.yml"
    text = file.read_text()
    fewer = {
        "label_ranks: [0, 8]\n": "label_ranks: [0, 2]\n",
        "label_ranks: [8, 22]\n": "label_ranks: [8, 12]\n",
        "label_ranks: [22, null]\n": "label_ranks: [22, null]\n      limit: 60\n",
    }
    for old, new in fewer.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)
    return conf
