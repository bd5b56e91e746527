"""The tables of a run's metrics."""

from __future__ import annotations

from typing import Any

import pytest

from pu_kd_pipeline.reporting.summary import model_rows, selection_rows
from tests.reporting.toy_run import metrics_of, model


def test_models_without_a_title_follow_under_their_key() -> None:
    metrics = {"pruned_student": model(0.9)}
    # It comes first in the metrics and last in the table.
    metrics.update(metrics_of(gain=0.02))
    header, accuracy, *_ = model_rows(metrics)
    assert header == ["", "teacher", "student", "student of random images", "pruned student"]
    assert accuracy == ["accuracy", "98.0 %", "95.0 %", "93.0 %", "90.0 %"]


def test_only_students_have_an_agreement_with_the_teacher() -> None:
    rows = model_rows(metrics_of(gain=None))
    # The teacher would agree with itself on all images.
    assert ["agreement with the teacher", "–", "97.0 %"] in rows


def test_a_quantity_that_no_model_has_is_left_out() -> None:
    metrics = {"student": {"accuracy": 0.5}}
    rows = model_rows(metrics)
    assert rows == [["", "student"], ["accuracy", "50.0 %"]]


def test_metrics_without_models_have_a_table_without_rows() -> None:
    assert model_rows({"n_test": 10}) == [[""]]
    assert selection_rows({"selection": {}}) == []


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("parameters", 999, "999"),
        ("parameters", 25_600_000, "25.6 M"),
        # The largest unit has no upper end.
        ("parameters", 1_234_000_000_000, "1,234 G"),
        ("size_bytes", 4_000, "4 kB"),
        ("latency_ms", 1_500.0, "1,500 ms"),
    ],
)
def test_numbers_have_the_largest_unit_that_fits(key: str, value: float, text: str) -> None:
    metrics = {"student": {"accuracy": 0.5, key: value}}
    _header, _accuracy, row = model_rows(metrics)
    _title, cell = row
    assert cell == text


def test_a_latency_has_its_spread() -> None:
    latency = {"accuracy": 0.5, "latency_ms": 1.234, "latency_spread_ms": 0.056}
    _header, _accuracy, row = model_rows({"student": latency})
    assert row == ["latency, one image", "1.23 ms (spread 0.056 ms)"]


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"n_selected": 1_000}, "1,000"),
        (
            {"n_selected": 6, "n_pool": 30, "rule": "nnpu", "criterion": "sign"},
            "6 of 30 (nnpu sign)",
        ),
        ({"n_selected": 6, "rule": "disagreement"}, "6 (disagreement, half of them at random)"),
        (
            {"n_selected": 30, "rule": "mixture", "n_preferred": 6},
            "30 (mixture, drawn by relatedness, 6 of them more often than evenly)",
        ),
        # Of a version that did not count them.
        (
            {"n_selected": 30, "rule": "mixture", "reasons": {"related": 6}},
            "30 (mixture, drawn by relatedness)",
        ),
        ({"n_selected": 6, "rule": "of another version"}, "6 (of another version)"),
    ],
)
def test_the_selected_images_are_stated_with_their_rule(facts: dict[str, Any], text: str) -> None:
    metrics = {"selection": facts}
    assert selection_rows(metrics) == [["pool images selected", text]]


def test_precision_and_recall_say_of_which_images_they_are() -> None:
    quality = {"precision": 0.5, "recall": 0.25}
    assert selection_rows({"selection": quality}) == [["precision", "50.0 %"], ["recall", "25.0 %"]]
    rows = dict(selection_rows({"selection": {**quality, "n_preferred": 6}}))
    assert rows["precision"] == "50.0 % (of the images that are drawn more often)"
    assert rows["recall"] == "25.0 % (of the images that are drawn more often)"


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "0.200"),
        ({"class_prior_lower": 0.1, "class_prior_upper": 0.3}, "0.200 (0.100 to 0.300)"),
        ({"class_prior_method": "given"}, "0.200 (given)"),
        ({"true_class_prior": 0.25}, "0.200, truly 0.250"),
    ],
)
def test_the_class_prior_is_stated_with_interval_and_truth(
    facts: dict[str, Any], text: str
) -> None:
    selection = {"class_prior": 0.2, **facts}
    rows = selection_rows({"selection": selection})
    assert rows == [["class prior", text]]


def test_excluded_copies_of_test_images_are_counted_per_store() -> None:
    facts = {"n_excluded_pool": 1_200, "n_excluded_labeled": 0}
    title = "excluded, copies of test images"
    assert selection_rows({"selection": facts}) == [[title, "1,200 of the pool images"]]


def test_the_second_reading_and_its_flag_have_a_row() -> None:
    readings = {"trained": 0.01, "outputs": 0.31, "outputs_bbe": 0.4, "ratio": 31.0}
    selection = {
        "n_selected": 5,
        "size_source": "budget",
        "class_prior_readings": readings,
        "class_prior_flag": "sources_differ",
    }
    rows = dict(selection_rows({"selection": selection}))
    expected = "0.310 by DEDPUL, 0.400 by BBE (31.0 times the trained estimate): sources differ"
    assert rows["the teacher's outputs read"] == expected
    assert rows["their number comes from"] == "budget"
