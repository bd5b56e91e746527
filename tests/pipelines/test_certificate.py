"""The certificate of a run, with and without labels, and the stage that holds a student to it."""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pu_kd_pipeline.certificate import certified_accuracy, check_certificate, make_certificate
from pu_kd_pipeline.errors import ExitCode, InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.learning.penultimate import find_last_linear
from pu_kd_pipeline.models.model import Model, load_model
from pu_kd_pipeline.params.certificate import CertificateParams
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.reporting.certificate_page import certificate_sentences, render_certificate
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import run_kedro
from tests.features.made_files import COMPUTE
from tests.pipelines.finished_run import (
    FEATURES,
    IMAGES,
    MODEL_INPUT,
    MODEL_OUTPUT,
    MODELS,
    REPORTING,
)
from tests.tracking.stored_runs import rows

pytestmark = pytest.mark.xdist_group("finished_run")
PARAMS = EvaluationParams(latency_repeats=1, compute=COMPUTE)
UNTESTED = {"untested": "there are no labels"}


class WithoutLabels(ImageSubset):
    """The images of a subset, whose labels are not known."""

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per image."""
        index = super().index
        return index.assign(label=pd.array([None] * len(index), dtype="Int32"))


def without_labels(store: ImageStore, n: int | None = None) -> ImageStore:
    subset = ImageSubset.of(store, np.arange(len(store) if n is None else n))
    return WithoutLabels(**vars(subset))


class Run:
    """What a finished run has saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = load_model(folder / MODELS / "teacher_model")
        self.student = load_model(folder / MODELS / "student_model")
        images = folder / IMAGES
        self.test = ImageStore.open(images / "test_images")
        stores = {name: ImageStore.open(images / f"{name}_images") for name in ("labeled", "pool")}
        self.yardstick = Yardstick(read_table(folder / MODEL_INPUT / "yardstick.parquet"), stores)
        self.labeled_features = ShardedTable.open(folder / FEATURES / "labeled_features")
        self.teacher_check = json.loads((folder / MODEL_OUTPUT / "teacher_check.json").read_text())
        self.certificate = json.loads((folder / REPORTING / "certificate.json").read_text())
        self.page = (folder / REPORTING / "certificate.html").read_text()
        self.metrics = json.loads((folder / REPORTING / "metrics.json").read_text())
        self.predictions = read_table(folder / MODEL_OUTPUT / "test_predictions.parquet")

    def make(self, **changes: Any) -> dict[str, Any]:
        """Return a certificate, with other inputs than those of the run."""
        inputs = {
            "teacher": self.teacher,
            "student": self.student,
            "test_images": self.test,
            "yardstick": self.yardstick,
            "labeled_features": self.labeled_features,
            "teacher_check": self.teacher_check,
            "params": PARAMS,
        }
        return make_certificate(**{**inputs, **changes})

    def check(self, certificate: dict[str, Any], **limits: float) -> dict[str, Any]:
        """Hold a certificate of this run's models to limits."""
        params = CertificateParams(**limits)
        return check_certificate(certificate, self.teacher, self.student, self.test, params)


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Run:
    return Run(finished_run)


def test_a_certificate_agrees_with_the_metrics_of_the_run(run):
    certificate = run.certificate
    student = run.metrics["student"]
    assert certificate["agreement"]["value"] == pytest.approx(student["agreement"])
    assert certificate["accuracy"]["value"] == pytest.approx(student["accuracy"])
    teacher = certificate["teacher_accuracy"]
    assert teacher["images"] == "test images"
    assert teacher["value"] == pytest.approx(run.metrics["teacher"]["accuracy"])
    limits = certificate["agreement"]["lower"] + teacher["lower"] - 1
    assert certificate["accuracy_bound"] == pytest.approx(max(0, limits))
    assert certificate["accuracy_bound"] <= certificate["accuracy"]["value"]

    of_teacher = run.predictions["teacher"].to_numpy()
    of_student = run.predictions["student"].to_numpy()
    for number, entry in enumerate(certificate["agreement_of_classes"]):
        is_of_class = of_teacher == number
        assert entry["n"] == is_of_class.sum()
        assert entry["n_hits"] == (of_student[is_of_class] == number).sum()
    n_confused = sum(entry["n"] for entry in certificate["confusions"])
    assert n_confused <= (of_teacher != of_student).sum()
    n_of_bins = [
        entry["n"] for entry in certificate["calibration"]["against_labels"]["student"]["bins"]
    ]
    assert sum(n_of_bins) == len(run.test)


def test_a_certificate_names_what_it_was_made_from(run):
    provenance = run.certificate["provenance"]
    assert provenance["student"] == run.student.fingerprint()
    assert provenance["teacher"] == run.teacher.fingerprint()
    assert provenance["test_images"] == run.test.fingerprint
    assert provenance["yardstick"] == run.yardstick.fingerprint
    assert provenance["manifest"]
    assert provenance["code_of_training"]
    assert provenance["seed"] == 0
    assert set(provenance["libraries"]) >= {"torch", "pu_kd_pipeline"}
    assert run.certificate["cost"]["hardware"]
    assert run.student.fingerprint() in run.page


def test_scaling_on_the_yardstick_brings_the_student_closer_there(run):
    factor = run.certificate["calibration"]["factor"]
    assert 1 / 20 <= factor <= 20
    of_teacher = run.certificate["calibration"]["against_teacher"]
    assert set(of_teacher) == {"student", "scaled_student"}


def test_without_labels_the_teacher_and_the_agreement_bound_the_accuracy(run):
    certificate = run.make(test_images=without_labels(run.test))
    assert certificate["accuracy"] is None
    assert certificate["calibration"]["against_labels"] is None
    assert certificate["agreement"] == run.certificate["agreement"]
    teacher = certificate["teacher_accuracy"]
    assert teacher["images"] == "labeled images"
    assert teacher["lower"] == run.teacher_check["lower"]
    assert certified_accuracy(certificate) == certificate["accuracy_bound"]

    sentences = " ".join(certificate_sentences(certificate))
    assert "The test images have no labels" in sentences
    assert "the teacher did not learn from them" in sentences
    page = render_certificate(certificate)
    assert "accuracy by the bound, at least" in page

    unknown = run.make(test_images=without_labels(run.test), teacher_check=UNTESTED)
    assert unknown["accuracy_bound"] is None
    assert certified_accuracy(unknown) is None
    render_certificate(unknown)


def test_without_labeled_images_the_teacher_is_known_from_test_labels_alone(run):
    nothing_labeled = {"labeled_features": None, "teacher_check": None}
    certificate = run.make(**nothing_labeled)
    assert certificate["teacher_accuracy"] == run.certificate["teacher_accuracy"]
    assert certificate["accuracy_bound"] == run.certificate["accuracy_bound"]
    assert certificate["shift"] is None
    assert certificate["n_compared"] == 0
    assert run.certificate["n_compared"] == len(run.labeled_features) > 0
    sentence = "there were no labeled images to compare them with"
    assert sentence in render_certificate(certificate)
    assert sentence not in run.page
    assert run.check(certificate, min_accuracy=0.01)["accuracy_source"] == "labels"

    images = without_labels(run.test)
    unlabeled = run.make(test_images=images, **nothing_labeled)
    assert unlabeled["teacher_accuracy"] is None
    assert unlabeled["accuracy_bound"] is None
    assert unlabeled["agreement"] == run.certificate["agreement"]
    page = render_certificate(unlabeled)
    assert "Nothing is known of its accuracy" in page
    present = (run.teacher, run.student, images)
    kept = check_certificate(unlabeled, *present, CertificateParams(min_agreement=0.01))
    assert kept["accuracy_source"] is None
    with pytest.raises(InputError, match="min_accuracy needs labels of the test images"):
        check_certificate(unlabeled, *present, CertificateParams(min_accuracy=0.01))


def test_an_empty_store_of_labeled_images_is_as_none(run):
    empty = ShardedTable.write(run.folder.parent / f"{run.folder.name}_empty", {})
    certificate = run.make(labeled_features=empty)
    assert certificate["n_compared"] == 0
    assert certificate["shift"] is None


def test_a_factor_that_was_fitted_on_images_of_the_teacher_is_warned_of(run):
    certificate = run.make(is_yardstick_learned=True)
    [warning] = set(certificate["warnings"]) - set(run.certificate["warnings"])
    assert "fitted on images that the teacher learned from" in warning
    factor = run.certificate["calibration"]["factor"]
    assert certificate["calibration"]["factor"] == pytest.approx(factor, rel=1e-4)
    # Without a factor, there is nothing to warn of.
    origin = {**run.student.card.origin, "yardstick": {"fingerprint": "another"}}
    card = run.student.card.model_copy(update={"origin": origin})
    unscaled = run.make(student=Model(run.student.network, card), is_yardstick_learned=True)
    assert unscaled["warnings"] == run.certificate["warnings"]


def test_few_images_and_images_of_another_kind_are_warned_of(run):
    few = run.make(test_images=without_labels(run.test, 8))
    [warning] = few["warnings"]
    assert warning.startswith("There are few images: the agreement may be anything from")
    # Of letters and patches the teacher is less sure than of digits.
    pool = run.yardstick.stores["pool"]
    is_other = ~pool.index["relevant"].to_numpy(dtype=bool)
    others = ImageSubset.of(pool, np.flatnonzero(is_other)[:300])
    warnings = run.make(test_images=WithoutLabels(**vars(others)))["warnings"]
    assert any("The teacher is surer of a labeled image" in warning for warning in warnings)
    assert not any("surer" in warning for warning in run.certificate["warnings"])


def test_missing_images_answers_that_are_no_numbers_and_old_features_are_refused(run):
    with pytest.raises(InputError, match="there are no test images"):
        run.make(test_images=ImageSubset.of(run.test, np.arange(0)))
    broken = load_model(run.folder / MODELS / "student_model")
    with torch.no_grad():
        for parameter in broken.network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(InputError, match="student_model gives no numbers for 500 of 500"):
        run.make(student=broken)
    overflowing = load_model(run.folder / MODELS / "student_model")
    _, last = find_last_linear(overflowing.network)
    with torch.no_grad():
        last.bias[:2] = float("inf")
    with pytest.raises(InputError, match="student_model gives no numbers for 500 of 500"):
        run.make(student=overflowing)
    with pytest.raises(InputError, match="labeled_features"):
        run.make(teacher=run.student)


def test_a_student_of_another_teacher_is_warned_of(run):
    origin = {**run.student.card.origin, "teacher": "another"}
    card = run.student.card.model_copy(update={"origin": origin})
    certificate = run.make(student=Model(run.student.network, card))
    assert "learned from another teacher" in certificate["warnings"][0]
    assert certificate["agreement"] == run.certificate["agreement"]


def test_a_student_that_may_have_learned_from_the_yardstick_is_not_scaled_by_it(run):
    origin = {**run.student.card.origin, "yardstick": {"fingerprint": "another"}}
    card = run.student.card.model_copy(update={"origin": origin})
    certificate = run.make(student=Model(run.student.network, card))
    assert certificate["calibration"]["factor"] is None
    assert "The student was not scaled" in render_certificate(certificate)
    assert set(certificate["calibration"]["against_teacher"]) == {"student"}
    render_certificate(certificate)


@pytest.mark.parametrize("name", ["agreement", "accuracy"])
def test_a_limit_is_kept_up_to_the_lower_end_of_the_interval(run, name):
    lower = run.certificate[name]["lower"]
    found = run.check(run.certificate, **{f"min_{name}": lower})
    assert found[f"{name}_lower"] == lower
    assert found["accuracy_source"] == "labels"
    with pytest.raises(InputError, match=f"certify: the {name}.* is only known to be at least"):
        run.check(run.certificate, **{f"min_{name}": float(np.nextafter(lower, 1))})


def test_a_check_needs_limits_and_labels(run):
    with pytest.raises(InputError, match="there is no limit to check"):
        run.check(run.certificate)
    unknown = {**run.certificate, "accuracy": None, "accuracy_bound": None}
    with pytest.raises(InputError, match="min_accuracy needs labels of the test images"):
        run.check(unknown, min_accuracy=0.1)


def test_an_accuracy_by_the_bound_is_named_and_refused_where_it_is_in_doubt(run):
    bound = {**run.certificate, "accuracy": None, "accuracy_bound": 0.9}
    found = run.check(bound, min_accuracy=0.9)
    assert found["accuracy_source"] == "bound"
    with pytest.raises(InputError, match="seem to be of another kind"):
        run.check({**bound, "shift": 0.8}, min_accuracy=0.9)
    # The agreement needs no such assumption.
    assert run.check({**bound, "shift": 0.8}, min_agreement=0.01)["agreement_lower"] > 0


def test_a_certificate_of_something_else_is_not_used(run):
    limits = CertificateParams(min_agreement=0.01)
    models = (run.teacher, run.student)
    subset = ImageSubset.of(run.test, np.arange(100))
    with pytest.raises(InputError, match="is not about the present test_images"):
        check_certificate(run.certificate, *models, subset, limits)
    with pytest.raises(InputError, match="is not about the present student_model"):
        check_certificate(run.certificate, run.teacher, run.teacher, run.test, limits)
    with pytest.raises(InputError, match="is not about the present teacher_model"):
        check_certificate(run.certificate, run.student, run.student, run.test, limits)
    earlier = load_model(run.folder / MODELS / "random_student_model")
    with pytest.raises(InputError, match="is not about the present student_model"):
        check_certificate(run.certificate, run.teacher, earlier, run.test, limits)


def test_the_stage_certify_holds_a_student_to_its_limits(finished_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    passed = run_kedro("--pipeline=certify", data=data, params=("certificate.min_agreement=0.01",))
    assert passed.returncode == 0, passed.stderr
    limits = json.loads((data / REPORTING / "certified_limits.json").read_text())
    assert limits["min_agreement"] == 0.01

    failed = run_kedro("--pipeline=certify", data=data, params=("certificate.min_agreement=1.0",))
    assert failed.returncode == ExitCode.LIMIT_MISSED
    assert "and 1.0 is asked for" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    # A failure is not remembered as done.
    again = run_kedro("--pipeline=certify", data=data, params=("certificate.min_agreement=1.0",))
    assert again.returncode == ExitCode.LIMIT_MISSED


def certificates_of_versions(data: Path) -> dict[int, dict[str, Any]]:
    """Return version of the registered student -> the certificate among its files."""
    found = {}
    for version, source in rows(data, "SELECT version, source FROM model_versions"):
        file = Path(source.removeprefix("file://")) / "certificate.json"
        if file.exists():
            found[version] = json.loads(file.read_text())
    return found


def fingerprints_of_versions(data: Path) -> dict[int, str]:
    query = "SELECT version, value FROM model_version_tags WHERE key = 'fingerprint'"
    return dict(rows(data, query))


def test_the_registered_student_carries_its_certificate(run):
    assert certificates_of_versions(run.folder) == {1: run.certificate}
    tags = dict(rows(run.folder, "SELECT key, value FROM model_version_tags"))
    # That of the file on the disk, which `certify` compares.
    assert tags["fingerprint"] == run.certificate["provenance"]["student"]
    lower = run.certificate["agreement"]["lower"]
    assert 0 <= lower - float(tags["certified_agreement"]) < 2e-4
    assert tags["certified_images"] == "500"
    # Of pixels and of files.
    descriptions = list((run.folder / "mlflow").rglob("MLmodel"))
    assert len(descriptions) == 2
    for description in descriptions:
        assert f"fingerprint: {run.student.fingerprint()}" in description.read_text()


def test_parts_of_a_run_attach_a_certificate_to_its_own_student_alone(finished_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    first = fingerprints_of_versions(data)[1]

    def run_part(*arguments: str, seed: int) -> None:
        params = ("tracking=true", f"distillation.seed={seed}")
        result = run_kedro(*arguments, data=data, params=params)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "MLflow has no model" not in " ".join(result.stdout.split())

    # The same student once more, whose certificate no node writes again.
    run_part("--pipeline=distillation", "--force", seed=0)
    assert fingerprints_of_versions(data) == {1: first, 2: first}
    assert set(certificates_of_versions(data)) == {1, 2}

    # Another student, and nothing that evaluates it.
    run_part("--pipeline=distillation", seed=1)
    third = fingerprints_of_versions(data)[3]
    assert third != first
    assert set(certificates_of_versions(data)) == {1, 2}

    run_part("--pipeline=evaluation", "--to-nodes=evaluation.write_certificate", seed=1)
    found = certificates_of_versions(data)
    assert {version: each["provenance"]["student"] for version, each in found.items()} == {
        1: first,
        2: first,
        3: third,
    }


def test_a_run_without_test_labels_ends_with_a_certificate(finished_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    unlabeled = ("data_ingestion.test=[{type: demo, part: test, labels: ignore}]",)
    refused = run_kedro("--pipeline=full", data=data, params=unlabeled)
    assert refused.returncode == ExitCode.USER_ERROR
    assert "data_ingestion.test: `evaluation.evaluate` needs labels" in refused.stderr

    to_certificate = "--to-nodes=evaluation.write_certificate"
    result = run_kedro("--pipeline=full", to_certificate, data=data, params=unlabeled)
    assert result.returncode == 0, result.stderr
    certificate = json.loads((data / REPORTING / "certificate.json").read_text())
    assert certificate["accuracy"] is None
    assert certificate["accuracy_bound"] is not None
    assert certificate["provenance"]["student"] == Run(finished_run).student.fingerprint()
