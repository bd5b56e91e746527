"""Runs whose numbers say little report it, and ordinary runs report nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pu_kd_pipeline.reporting.degenerate import degenerate_findings
from tests.reporting.toy_run import metrics_of


def sound() -> dict[str, Any]:
    """Return the metrics of a run in which nothing is wrong."""
    metrics = metrics_of()
    models = ("teacher", "student", "random_student")
    metrics["checks"] = {
        "batch_size": 32,
        "n_shared_with_random": 12,
        "n_test_classes": 10,
        "chance_accuracy": dict.fromkeys(models, 0.1),
        "chance_agreement": dict.fromkeys(models[1:], 0.1),
        "classes_without_selected_images": [],
        "classes_without_labeled_images": [],
        "classes_without_test_images": [],
        "students_with_equal_weights": [],
    }
    return metrics


def test_a_sound_run_has_no_doubts() -> None:
    assert degenerate_findings(sound()) == []


def test_metrics_of_earlier_versions_have_no_doubts_that_their_facts_do_not_show() -> None:
    assert degenerate_findings(metrics_of()) == []
    assert degenerate_findings({"n_test": 1000}) == []


CASES: list[tuple[str, Any, str]] = [
    ("selection.n_selected", 0, "No pool image was selected: student and control learned from the"),
    ("selection.n_selected", 300, "All 300 pool images were selected: student and control"),
    ("selection.n_selected", 31, "Only 31 pool images were selected, fewer than one batch (32)"),
    (
        "checks.n_shared_with_random",
        30,
        "learned from 30 of the 60 images that the rule chose (50.0 %)",
    ),
    ("checks.classes_without_selected_images", ["seven"], "No selected image is of class 'seven'"),
    (
        "checks.classes_without_selected_images",
        list("abcdefg"),
        "No selected image is of 7 classes ('a', 'b', 'c', 'd', 'e', …), as far as the teacher",
    ),
    ("checks.classes_without_labeled_images", ["[b]"], "No labeled image is of class '[b]'"),
    ("checks.classes_without_test_images", ["x", "y"], "No test image is of 2 classes ('x', 'y')"),
    ("n_test", 25, "only 25 test images: chance moves each accuracy by up to ±20 points"),
    ("checks.n_test_classes", 1, "All test images are of one class"),
    ("student.accuracy", 0.12, "The student is no better than chance: it classifies 12.0 % of"),
    ("random_student.accuracy", 0.1, "The student of random images is no better than chance"),
    ("teacher.accuracy", 0.0, "The teacher is no better than chance: it classifies 0.0 %"),
    ("student.agreement", 0.0, "The student agrees with the teacher on 0.0 % of the test images"),
    ("student.agreement", 0.11, "no more than by chance"),
    ("student.parameters", 6001, "costs more than its teacher in parameters (6 k against 6 k)"),
    ("student.flops", 400e6, "costs more than its teacher in FLOPs per image (400 M against 60 k)"),
    ("student.latency_ms", 0.6, "in latency, one image (0.6 ms against 0.5 ms)"),
    ("checks.students_with_equal_weights", ["random_student"], "are the same network, with equal"),
    ("checks.students_with_equal_weights", ["teacher"], "The student and the teacher are the same"),
]


@pytest.mark.parametrize(("key", "value", "text"), CASES)
def test_a_degenerate_run_says_so_in_one_sentence(key: str, value: Any, text: str) -> None:
    metrics = sound()
    *blocks, name = key.split(".")
    block = metrics
    for part in blocks:
        block = block[part]
    block[name] = value
    if key == "selection.n_selected":
        metrics["checks"]["n_shared_with_random"] = 0
    [sentence] = degenerate_findings(metrics)
    assert text in sentence
    # What to do ends it.
    assert sentence.count(". ") >= 1


@pytest.mark.parametrize(("n_shared", "n_doubts"), [(44, 0), (45, 1), (10, 0)])
def test_images_that_a_rule_draws_at_random_on_purpose_may_be_shared(
    n_shared: int, n_doubts: int
) -> None:
    metrics = sound()
    # It draws 30 of the 60 images at random, and the random student draws the same.
    metrics["selection"]["rule"] = "disagreement"
    metrics["checks"]["n_shared_with_random"] = n_shared
    assert len(degenerate_findings(metrics)) == n_doubts


def test_excluded_images_do_not_count_as_left_over() -> None:
    metrics = sound()
    metrics["selection"].update(n_selected=290, n_excluded_pool=10)
    metrics["checks"]["n_shared_with_random"] = 290
    [sentence] = degenerate_findings(metrics)
    assert sentence.startswith("All 290 pool images")


def test_drawing_from_the_entire_pool_by_relatedness_is_no_doubt() -> None:
    metrics = sound()
    metrics["selection"].update(n_selected=300, effective_sample_size=100.0)
    assert degenerate_findings(metrics) == []


def test_a_latency_within_the_error_of_the_clock_is_no_doubt() -> None:
    metrics = sound()
    metrics["student"]["latency_ms"] = 1.04 * metrics["teacher"]["latency_ms"]
    assert degenerate_findings(metrics) == []


def test_a_latency_within_the_spread_of_its_measurement_is_no_doubt() -> None:
    metrics = sound()
    for name, latency_ms in (("teacher", 1.0), ("student", 1.3)):
        metrics[name].update(latency_ms=latency_ms, latency_spread_ms=0.1)
    assert len(degenerate_findings(metrics)) == 1
    metrics["teacher"]["latency_spread_ms"] = 0.4
    assert degenerate_findings(metrics) == []


@pytest.mark.parametrize(("key", "kind"), [("accuracy", "accuracy"), ("agreement", "agreement")])
def test_few_images_do_not_show_that_a_student_is_useless(key: str, kind: str) -> None:
    metrics = sound()
    metrics["n_test"] = 20
    metrics["checks"][f"chance_{kind}"]["student"] = 0.5
    metrics["student"][key] = 0.65
    few, unknown = degenerate_findings(metrics)
    assert few.startswith("There are only 20 test images")
    assert unknown.startswith("Chance can explain")
    assert unknown.endswith("Give data_ingestion.test more images.")
    # As many hundreds show it.
    metrics["n_test"] = 2000
    metrics["student"][key] = 0.505
    [sentence] = degenerate_findings(metrics)
    assert "no better than chance" in sentence or "no more than by chance" in sentence


def test_several_costs_are_one_sentence() -> None:
    metrics = sound()
    metrics["student"].update(parameters=7000, flops=70_000)
    [sentence] = degenerate_findings(metrics)
    assert "parameters (7 k against 6 k) and FLOPs per image (70 k against 60 k)" in sentence


def test_doubts_are_warnings(caplog: pytest.LogCaptureFixture) -> None:
    from pu_kd_pipeline.reporting.findings import with_findings

    metrics = sound()
    metrics["n_test"] = 10
    with_findings(metrics)
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert len(warnings) == 1
    assert warnings[0].startswith("There are only 10 test images")
