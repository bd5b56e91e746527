"""The certificate of a model in MLflow: which models get it, and what the registry shows of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset

from pu_kd_pipeline.hooks.tracking import CERTIFICATE, earlier_certificate
from pu_kd_pipeline.tracking.certificates import certificate_record, certificate_tags
from tests.tracking.stored_runs import rows


def certificate_of(model: Any, **changes: Any) -> dict[str, Any]:
    """Return the keys of a certificate that MLflow reads."""
    certificate = {
        "agreement": {"value": 0.97, "lower": 0.95129, "upper": 0.98},
        "accuracy": {"value": 0.95, "lower": 0.93999, "upper": 0.96},
        "accuracy_bound": 0.9,
        "shift": None,
        "images": {"n": 500},
        "warnings": [],
        "provenance": {"student": model.fingerprint()},
    }
    return {**certificate, **changes}


@pytest.fixture
def model(new_model):
    torch.manual_seed(0)
    return new_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), 2, 2)


@pytest.fixture
def other_model(new_model):
    torch.manual_seed(1)
    return new_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), 2, 2)


def certificates(folder: Path) -> dict[str, dict[str, Any]]:
    """Return identifier of a logged model -> the certificate among its files."""
    found = {}
    for file in (folder / "mlflow").rglob("certificate.json"):
        found[file.parents[1].name] = json.loads(file.read_text())
    return found


def tags_of_versions(folder: Path) -> dict[int, dict[str, str]]:
    """Return version of the registered student -> its tags."""
    found: dict[int, dict[str, str]] = {}
    for version, key, value in rows(folder, "SELECT version, key, value FROM model_version_tags"):
        found.setdefault(version, {})[key] = value
    return found


def model_ids(folder: Path) -> dict[str, str]:
    """Return fingerprint -> identifier of the logged models."""
    query = "SELECT tag_value, model_id FROM logged_model_tags WHERE tag_key = 'fingerprint'"
    return dict(rows(folder, query))


def test_a_certificate_is_stored_with_its_model(new_tracker, model, folder):
    tracker = new_tracker()
    tracker.log_model("student_model", model, None)
    tracker.log_certificate("certificate", certificate_of(model))
    tracker.end("FINISHED")
    [model_id] = model_ids(folder).values()
    assert certificates(folder) == {model_id: certificate_of(model)}
    tags = tags_of_versions(folder)[1]
    assert tags["fingerprint"] == model.fingerprint()
    # Lower limits, rounded down.
    assert tags["certified_agreement"] == "0.9512"
    assert tags["certified_accuracy"] == "0.9399"
    assert tags["certified_accuracy_by"] == "labels"
    assert tags["certified_images"] == "500"
    assert tags["certificate_warnings"] == "0"
    query = "SELECT tag_value FROM logged_model_tags WHERE tag_key = 'certified_agreement'"
    assert rows(folder, query) == [("0.9512",)]

    # The model's own files name the same fingerprint.
    [description] = (folder / "mlflow").rglob("MLmodel")
    assert f"fingerprint: {model.fingerprint()}" in description.read_text()
    [(text,)] = rows(folder, "SELECT description FROM model_versions")
    assert "`provenance.student` in it is the tag `fingerprint`" in text


def test_a_stage_of_its_own_finds_the_model_of_an_earlier_run(new_tracker, model, folder):
    training = new_tracker("distillation")
    training.log_model("student_model", model, None)
    training.end("FINISHED")
    assert certificates(folder) == {}
    evaluation = new_tracker("evaluation")
    evaluation.log_certificate("certificate", certificate_of(model))
    evaluation.end("FINISHED")
    [model_id] = model_ids(folder).values()
    assert list(certificates(folder)) == [model_id]
    assert tags_of_versions(folder)[1]["certified_accuracy_by"] == "labels"


def test_a_new_student_does_not_get_the_certificate_of_the_one_before(
    new_tracker, model, other_model, folder
):
    first = new_tracker()
    first.log_model("student_model", model, None)
    first.log_certificate("certificate", certificate_of(model))
    first.end("FINISHED")
    # A run of a part: a new student, and the certificate of before.
    second = new_tracker()
    second.log_model("student_model", other_model, None)
    second.log_certificate("certificate", certificate_of(model, warnings=["one"]))
    second.end("FINISHED")
    assert list(certificates(folder)) == [model_ids(folder)[model.fingerprint()]]
    tags = tags_of_versions(folder)
    assert tags[1]["certificate_warnings"] == "1"
    assert not any(key.startswith("certif") for key in tags[2])


def test_a_later_certificate_replaces_all_of_an_earlier_one(new_tracker, model, folder):
    tracker = new_tracker()
    tracker.log_model("student_model", model, None)
    tracker.log_certificate("certificate", certificate_of(model))
    later = certificate_of(model, accuracy=None, accuracy_bound=None, images={"n": 20})
    tracker.log_certificate("certificate", later)
    tracker.end("FINISHED")
    assert list(certificates(folder).values()) == [later]
    tags = tags_of_versions(folder)[1]
    assert tags["certified_accuracy"] == "unknown"
    assert tags["certified_accuracy_by"] == "unknown"
    assert tags["certified_images"] == "20"


def test_every_version_of_the_same_student_has_its_certificate(new_tracker, model, folder):
    for _ in range(2):
        tracker = new_tracker()
        tracker.log_model("student_model", model, None)
        tracker.end("FINISHED")
    last = new_tracker()
    last.log_certificate("certificate", certificate_of(model))
    last.end("FINISHED")
    assert len(certificates(folder)) == 2
    assert {tags["certified_agreement"] for tags in tags_of_versions(folder).values()} == {"0.9512"}


def test_a_certificate_without_its_model_costs_one_warning(
    new_tracker, model, other_model, folder, caplog
):
    tracker = new_tracker()
    tracker.log_model("student_model", model, None)
    tracker.log_certificate("certificate", certificate_of(other_model))
    tracker.end("FINISHED")
    assert certificates(folder) == {}
    assert caplog.text.count("WARNING") == 1
    assert "MLflow has no model in this experiment that the certificate is about" in caplog.text


def test_a_model_that_cannot_be_exported_costs_one_warning_in_all(new_tracker, new_model, caplog):
    class Undecided(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :2] if images.sum() > 0 else images.flatten(1)[:, 2:]

    model = new_model(Undecided(), 2, 2)
    tracker = new_tracker()
    tracker.log_model("student_model", model, None)
    tracker.log_certificate("certificate", certificate_of(model))
    tracker.end("FINISHED")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    [warning] = [record for record in warnings if record.name.startswith("pu_kd_pipeline")]
    assert "cannot be exported and is not registered" in warning.getMessage()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"provenance": {"student": "0"}},
        [],
        "text",
        7,
        None,
        {"provenance": {"student": "a" * 64}, "agreement": {"lower": None}},
    ],
)
def test_an_entry_that_holds_something_else_costs_a_warning(new_tracker, caplog, content):
    tracker = new_tracker()
    tracker.log_certificate("my_entry", content)
    tracker.end("FINISHED")
    assert caplog.text.count("WARNING") == 1
    assert "my_entry is not stored with a model in MLflow: it is not a certificate" in caplog.text


def test_a_fingerprint_cannot_hold_a_query(model):
    hostile = certificate_of(model, provenance={"student": "x' OR '1' = '1"})
    with pytest.raises(ValueError, match=r"provenance\.student is not a fingerprint"):
        certificate_record(hostile)


def test_an_accuracy_by_the_bound_is_shown_unless_the_certificate_doubts_it(model):
    by_bound = certificate_of(model, accuracy=None)
    assert certificate_tags(by_bound)["certified_accuracy"] == "0.9000"
    assert certificate_tags(by_bound)["certified_accuracy_by"] == "bound"
    doubted = certificate_tags({**by_bound, "shift": 0.8})
    assert doubted["certified_accuracy"] == "unknown"
    assert doubted["certified_accuracy_by"] == "unknown"
    # Labels need no bound.
    assert certificate_tags(certificate_of(model, shift=0.8))["certified_accuracy"] == "0.9399"


@pytest.mark.parametrize("lower", [0.0, 0.3, 0.94999, 0.95, 0.99999, 1.0])
def test_a_tag_never_promises_more_than_the_limit(model, lower):
    agreement = {"value": 1.0, "lower": lower, "upper": 1.0}
    shown = float(
        certificate_tags(certificate_of(model, agreement=agreement))["certified_agreement"]
    )
    assert lower - 2e-4 < shown <= lower


# --- what the catalog still has -------------------------------------------------------------------


def catalog_with(certificate: Any, kind: str | None = "certificate") -> DataCatalog:
    return DataCatalog({CERTIFICATE: MemoryDataset(certificate, metadata={"mlflow": kind})})


def test_a_student_that_came_out_as_before_keeps_its_certificate(model, other_model):
    certificate = certificate_of(model)
    assert earlier_certificate(catalog_with(certificate), model) == certificate
    assert earlier_certificate(catalog_with(certificate), other_model) is None
    # An environment may switch it off.
    assert earlier_certificate(catalog_with(certificate, kind=None), model) is None
    assert earlier_certificate(DataCatalog(), model) is None


def test_a_certificate_that_is_missing_or_damaged_is_none(model, tmp_path):
    for damaged in ({}, [], {"provenance": None}, None):
        assert earlier_certificate(catalog_with(damaged), model) is None
    file = tmp_path / "certificate.json"
    entry = {
        "type": "json.JSONDataset",
        "filepath": str(file),
        "metadata": {"mlflow": "certificate"},
    }
    catalog = DataCatalog.from_config({CERTIFICATE: entry})
    assert earlier_certificate(catalog, model) is None
    file.write_text("{")
    assert earlier_certificate(catalog, model) is None
    file.write_text(json.dumps(certificate_of(model)))
    assert earlier_certificate(catalog, model) == certificate_of(model)
