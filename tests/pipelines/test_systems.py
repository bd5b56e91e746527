"""The other systems through the command line: without any original image, and with a critic."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import load_model
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, run_kedro

pytestmark = pytest.mark.xdist_group("systems")

QUICK = ("n_updates=300", "record_every=50")
GIVEN = ("teacher_training.n_updates=300", "relatedness.n_noise_images=500")


def quick(stage: str) -> list[str]:
    return [f"{stage}.{change}" for change in QUICK]


def _metrics(data: Path) -> dict:
    file = data / "08_reporting" / "metrics.json"
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def without_labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `full_unlabeled` on the demo's images, configured without labeled images."""
    data = tmp_path_factory.mktemp("systems")
    conf = tmp_path_factory.mktemp("conf")
    shutil.copytree(PROJECT / "conf", conf, dirs_exist_ok=True)
    environment = conf / "unlabeled"
    environment.mkdir()
    (environment / "parameters.yml").write_text("data_ingestion: { labeled: [] }\n")
    done = run_kedro(
        "--pipeline=full_unlabeled",
        "--env=unlabeled",
        f"--conf-source={conf}",
        data=data,
        params=(*GIVEN, *quick("unlabeled_distillation")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return data


def test_a_student_needs_no_original_image(without_labeled):
    labeled = ImageStore.open(without_labeled / "02_intermediate" / "labeled_images")

    assert len(labeled) == 0

    metrics = _metrics(without_labeled)
    accuracy = metrics["student"]["accuracy"]
    random_accuracy = metrics["random_student"]["accuracy"]

    # Chance is 0.1.
    assert accuracy > 0.7
    assert random_accuracy > 0.7

    selection = metrics["selection"]

    assert selection["rule"] == "preferential"
    assert selection["n_labeled"] == 0
    yardstick = read_table(without_labeled / "05_model_input" / "unlabeled_yardstick.parquet")
    n_selected = selection["n_selected"]
    assert n_selected == 3050 - len(yardstick)
    assert 1 < selection["effective_sample_size"] < n_selected
    assert selection["gain"] == pytest.approx(accuracy - random_accuracy)


def test_both_students_learn_the_teachers_features(without_labeled):
    for name in ("distillation_history", "random_distillation_history"):
        history = read_table(without_labeled / "07_model_output" / f"{name}.parquet")
        assert list(history["update"]) == [50, 100, 150, 200, 250, 300]
        for loss in ("logits_loss", "penultimate_loss"):
            values = history[loss].tolist()
            assert values[-1] < values[0], loss


def certificate_of(data: Path) -> dict:
    """Return the certificate of a run, which is about the student that the run has saved."""
    certificate = json.loads((data / "08_reporting" / "certificate.json").read_text())
    student = load_model(data / "06_models" / "student_model")
    assert certificate["provenance"]["student"] == student.fingerprint()
    return certificate


def certify(data: Path, limit: str) -> subprocess.CompletedProcess[str]:
    return run_kedro("--pipeline=certify", data=data, params=(limit,))


def test_a_student_without_labeled_images_has_a_certificate(without_labeled):
    certificate = certificate_of(without_labeled)
    metrics = _metrics(without_labeled)
    assert certificate["agreement"]["value"] == pytest.approx(metrics["student"]["agreement"])
    assert certificate["accuracy"]["value"] == pytest.approx(metrics["student"]["accuracy"])
    assert certificate["teacher_accuracy"]["images"] == "test images"
    assert certificate["n_compared"] == 0
    yardstick = read_table(without_labeled / "05_model_input" / "unlabeled_yardstick.parquet")
    assert certificate["calibration"]["n_yardstick"] == len(yardstick) > 0
    assert certificate["warnings"] == []
    provenance = certificate["provenance"]
    assert provenance["manifest"]
    assert provenance["seed"] == 0
    page = (without_labeled / "08_reporting" / "certificate.html").read_text()
    assert "there were no labeled images to compare them with" in page
    # All results are of one run, and the report says nothing else.
    report = (without_labeled / "08_reporting" / "report.html").read_text()
    assert '<p class="doubts">' not in report

    assert certify(without_labeled, "certificate.min_agreement=0.1").returncode == 0
    missed = certify(without_labeled, "certificate.min_agreement=1.0")
    assert missed.returncode == ExitCode.LIMIT_MISSED
    assert "and 1.0 is asked for" in missed.stderr


def test_without_any_label_the_pipeline_ends_with_a_certificate(without_labeled, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(without_labeled, data, copy_function=shutil.copy2)
    unlabeled = (
        *GIVEN,
        *quick("unlabeled_distillation"),
        "data_ingestion.test=[{type: demo, part: test, labels: ignore}]",
    )
    refused = run_kedro("--pipeline=full_unlabeled", data=data, params=unlabeled)
    assert refused.returncode == ExitCode.USER_ERROR
    to_certificate = "--to-nodes=unlabeled_distillation.write_certificate"
    assert f"or add {to_certificate}, which needs none" in refused.stderr
    done = run_kedro("--pipeline=full_unlabeled", to_certificate, data=data, params=unlabeled)
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = certificate_of(data)
    assert certificate["accuracy"] is None
    assert certificate["teacher_accuracy"] is None
    assert certificate["accuracy_bound"] is None
    page = (data / "08_reporting" / "certificate.html").read_text()
    assert "Nothing is known of its accuracy" in page
    assert certify(data, "certificate.min_agreement=0.1").returncode == 0
    unknown = certify(data, "certificate.min_accuracy=0.1")
    assert unknown.returncode == ExitCode.USER_ERROR
    assert "certificate.min_accuracy needs labels of the test images" in unknown.stderr


def test_a_critic_is_trained_with_the_student_and_reported(without_labeled):
    params = (*GIVEN, *quick("critic_distillation"))
    done = run_kedro("--pipeline=critic_distillation", data=without_labeled, params=params)

    assert done.returncode == 0, done.stdout + done.stderr

    metrics = _metrics(without_labeled)
    accuracy = metrics["student"]["accuracy"]

    assert accuracy > 0.7

    gain = accuracy - metrics["student_without_critic"]["accuracy"]

    assert metrics["critic"]["gain"] == pytest.approx(gain)

    history = read_table(without_labeled / "07_model_output" / "distillation_history.parquet")

    assert {"critic_auc", "critic_accuracy", "clamped_share"} <= set(history.columns)
    assert {"label_loss", "attention_loss"} <= set(history.columns)

    student = load_model(without_labeled / "06_models" / "student_model")

    assert student.card.origin["critic_collapse"] == metrics["critic"]["collapse"]

    control = read_table(without_labeled / "07_model_output" / "history_without_critic.parquet")

    assert "critic_auc" not in control.columns
    pd.testing.assert_series_equal(history["update"], control["update"])

    certificate = certificate_of(without_labeled)
    assert certificate["accuracy"]["value"] == pytest.approx(accuracy)
    assert certificate["calibration"]["factor"] is not None
    [warning] = certificate["warnings"]
    assert "fitted on images that the teacher learned from" in warning
    assert certify(without_labeled, "certificate.min_agreement=0.1").returncode == 0

    report = (without_labeled / "08_reporting" / "report.html").read_text()
    assert "The critic " in report
    assert "student without the critic" in report
    assert certificate["provenance"]["student"] in report
    assert '<p class="doubts">' not in report

    for name in ("critic_curves", "per_class_accuracy_plot"):
        assert (without_labeled / "08_reporting" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("pipeline", ["unlabeled_distillation", "critic_distillation"])
def test_robust_distillation_is_refused_without_class_weights(without_labeled, pipeline):
    # The objective weights classes by the selected images, and here nothing is selected.
    changes = (*GIVEN, f"{pipeline}.objective=robust_kd")
    done = run_kedro(f"--pipeline={pipeline}", data=without_labeled, params=changes)

    assert done.returncode == ExitCode.USER_ERROR

    printed = " ".join((done.stdout + done.stderr).split())

    assert "objective: 'robust_kd' belongs to labeled and selected images" in printed
    assert "Traceback" not in printed
