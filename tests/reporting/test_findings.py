"""The sentences on a run: the student, and its gain over its control."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pu_kd_pipeline.reporting.findings import doubts_of, findings, findings_of, with_findings
from pu_kd_pipeline.reporting.gains import gain_text, gain_title
from pu_kd_pipeline.reporting.html import render_report
from pu_kd_pipeline.reporting.summary import selection_rows
from pu_kd_pipeline.tracking.run_metadata import markdown_note
from tests.reporting.toy_run import metrics_of


def with_gain(gain: float, lower: float, upper: float, p_value: float) -> dict[str, Any]:
    """Return the metrics of a run whose gain was tested."""
    metrics = metrics_of(gain)
    metrics["selection"].update(gain_lower=lower, gain_upper=upper, gain_p_value=p_value)
    return metrics


def test_the_first_sentence_compares_student_and_teacher() -> None:
    sentence = findings(metrics_of())[0]
    assert sentence == (
        "The student classifies 95.0 % of the test images correctly, 3.0 points below its teacher "
        "(98.0 %), with 6.0 times fewer parameters. It agrees with its teacher on 97.0 % of them."
    )


def test_the_difference_to_the_teacher_has_its_interval() -> None:
    metrics = metrics_of()
    found = {"difference": -0.03, "lower": -0.05, "upper": -0.01, "p_value": 0.0123}
    metrics["difference_to_teacher"] = {"student": found}
    sentence = findings(metrics)[0]
    assert "(98.0 %; difference 95 %: −5.0 to −1.0, p = 0.012)" in sentence


def test_equal_models_are_reported_as_equal() -> None:
    metrics = metrics_of()
    # Not "0.0 points below", and not "1.0 times fewer".
    metrics["student"] = metrics["teacher"]
    sentence = findings(metrics)[0]
    assert "98.0 % of the test images correctly, as many as its teacher (98.0 %)" in sentence
    assert "with as many parameters" in sentence


@pytest.mark.parametrize(
    ("gain", "beginning"),
    [
        (0.027, "The selection gained 2.7 points: a student distilled in the same way"),
        (0.0, "The selection gained nothing here: a student distilled in the same way"),
        (-0.012, "The selection cost 1.2 points here: a student distilled in the same way"),
    ],
)
def test_the_gain_of_the_selection_is_stated_for_either_sign(gain: float, beginning: str) -> None:
    metrics = metrics_of(gain)
    _, sentence, *_ = findings(metrics)
    random_accuracy = 100 * (0.95 - gain)
    assert sentence.startswith(beginning)
    assert f"random pool images reaches {random_accuracy:.1f} %." in sentence


def test_a_run_without_a_random_student_states_no_gain() -> None:
    sentences = findings(metrics_of(gain=None))
    assert len(sentences) == 2
    assert "No student was distilled from random images" in sentences[1]


def test_the_gain_is_stated_with_its_paired_test() -> None:
    significant = findings(with_gain(0.022, 0.004, 0.041, 0.0192))[1]
    assert significant.endswith(
        "reaches 92.8 %; chance does not explain the difference "
        "(95 %: +0.4 to +4.1, p = 0.019, paired on the same 400 test images)."
    )
    by_chance = findings(with_gain(0.01, -0.01, 0.03, 0.4))[1]
    assert "; chance can explain the difference (95 %: −1.0 to +3.0, p = 0.4," in by_chance


@pytest.mark.parametrize(
    ("lower", "p_value", "text"),
    [
        # Neither a bound nor a p value is rounded to the limit that decides.
        (0.0003, 0.04961, "95 %: +0.03 to +4.00, p = 0.0496"),
        (0.0, 0.05, "95 %: 0.0 to +4.0, p = 0.0500"),
        (0.02, 1e-9, "95 %: +2.0 to +4.0, p < 0.001"),
    ],
)
def test_rounding_never_contradicts_the_verdict(lower: float, p_value: float, text: str) -> None:
    assert text in findings(with_gain(0.02, lower, 0.04, p_value))[1]


def test_a_small_difference_has_a_size_if_chance_does_not_explain_it() -> None:
    assert "The selection gained 0.04 points: " in findings(with_gain(4e-4, 1e-4, 7e-4, 2e-3))[1]
    assert "The selection gained nothing here: " in findings(with_gain(4e-4, -1e-4, 9e-4, 0.3))[1]
    metrics = metrics_of(0.0)
    metrics["student"]["accuracy"] = metrics["teacher"]["accuracy"] - 4e-4
    tested = {"difference": -4e-4, "lower": -7e-4, "upper": -1e-4, "p_value": 2e-3}
    metrics["difference_to_teacher"] = {"student": tested}
    assert "correctly, 0.04 points below its teacher" in findings(metrics)[0]


def test_a_gain_of_earlier_metrics_is_reported_as_not_tested() -> None:
    metrics = metrics_of(0.02)
    assert "was not tested. Run the stage that evaluates again" in findings(metrics)[1]
    assert selection_rows(metrics)[-1] == ["selection gain", "+2.0 points (not tested)"]


def test_students_without_a_recipe_have_a_gain_with_a_caveat() -> None:
    metrics = with_gain(0.022, 0.004, 0.041, 0.019)
    metrics["selection"]["is_control_verified"] = False
    assert "Whether both were trained with the same parameters is not known" in findings(metrics)[1]


def not_comparable() -> dict[str, Any]:
    metrics = metrics_of(0.02)
    reason = "student and control were trained differently: optimizer.learning_rate 0.001 and 0.1"
    metrics["selection"].update(gain=None, gain_reason=reason)
    return metrics


def test_where_there_is_no_gain_its_reason_stands_in_its_place() -> None:
    metrics = not_comparable()
    reason = metrics["selection"]["gain_reason"]
    sentences = findings(metrics)
    assert sentences[1].startswith(f"No selection gain is given: {reason}. Train both students")
    # Nothing is said about the certainty of a number that is not there.
    assert len(sentences) == 2
    assert selection_rows(metrics)[-1] == ["selection gain", f"none: {reason}"]


def test_the_critic_has_a_gain_of_its_own() -> None:
    metrics = metrics_of(gain=None)
    metrics["student_without_critic"] = metrics["teacher"]
    metrics["critic"] = {
        "gain": -0.03,
        "gain_lower": -0.05,
        "gain_upper": -0.01,
        "gain_p_value": 0.004,
    }
    assert findings(metrics)[1].startswith(
        "The critic cost 3.0 points here: a student distilled in the same way without the critic"
    )
    assert gain_title(metrics) == "gain of the critic"
    assert gain_text(metrics) == "−3.0 points (95 %: −5.0 to −1.0, p = 0.004)"


def test_samples_by_relatedness_are_compared_with_uniform_ones() -> None:
    metrics = with_gain(0.022, 0.004, 0.041, 0.019)
    metrics["selection"]["effective_sample_size"] = 700.0
    assert "the same way from uniform samples of the same images reaches" in findings(metrics)[1]


@pytest.mark.parametrize("metrics", [with_gain(0.022, 0.004, 0.041, 0.0192), not_comparable()])
def test_all_readers_get_the_same_sentences(
    metrics: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    metrics["n_test"] = 40
    with caplog.at_level(logging.DEBUG, logger="pu_kd_pipeline.reporting.findings"):
        written = with_findings(metrics)
    sentences = written["findings"] + written["doubts"]
    assert len(written["doubts"]) == 1
    assert caplog.messages == sentences

    # A page made elsewhere shows the stored sentences, also if other code would write others.
    stored = {**written, "findings": ["Stored."], "doubts": ["Doubt."]}
    assert findings_of(stored) == ["Stored."]
    assert doubts_of(stored) == ["Doubt."]

    page = render_report("A run", written, {}, {}, {}, {}, {}).replace("\u00a0", " ")
    note = markdown_note("made by", metrics=written)
    for sentence in sentences:
        assert sentence.replace("<", "&lt;") in page
        assert sentence.replace("<", "\\<") in note


def with_whole_pool(**facts: Any) -> dict[str, Any]:
    """Return the metrics of a run that has the second control, too."""
    metrics = with_gain(0.02, 0.01, 0.03, 0.0004)
    metrics["whole_pool_student"] = {**metrics["student"], "accuracy": 0.96}
    tested = {"gain": -0.01, "gain_lower": -0.03, "gain_upper": 0.01, "gain_p_value": 0.3}
    metrics["selection"]["whole_pool"] = {**tested, **facts}
    return metrics


def test_both_controls_are_stated_where_both_were_trained() -> None:
    metrics = with_whole_pool()
    _, first, second, *_ = findings(metrics)
    assert first.startswith("The selection gained 2.0 points")
    assert second == (
        "Against all pool images, with as many updates and the same share of labeled images per "
        "batch (96.0 %), the selection cost 1.0 points here; chance can explain the difference "
        "(95 %: \u22123.0 to +1.0, p = 0.3, paired on the same 400 test images)."
    )
    rows = dict(selection_rows(metrics))
    assert rows["selection gain"].startswith("+2.0 points")
    assert rows["gain over the whole pool"].startswith("\u22121.0 points")


def test_a_control_of_the_whole_pool_that_was_trained_differently_has_its_reason() -> None:
    metrics = with_whole_pool(gain=None, gain_reason="seed 0 and 1")
    assert "No gain over the student of the whole pool is given: seed 0 and 1." in findings(metrics)


@pytest.mark.parametrize(("rule", "is_same_pool"), [("mixture", True), ("nnpu", False)])
def test_draws_from_the_whole_pool_are_compared_with_uniform_draws(
    rule: str, is_same_pool: bool
) -> None:
    metrics = metrics_of()
    # Images of the yardstick and copies of test images are not there to select.
    metrics["selection"].update(
        rule=rule, n_selected=280, n_pool=300, n_yardstick_pool=15, n_excluded_pool=5
    )
    sentence = findings(metrics)[1]
    assert ("from the whole pool, drawn evenly, reaches" in sentence) == is_same_pool
    doubts = " ".join(doubts_of(metrics))
    assert ("All 280 pool images were selected" in doubts) != is_same_pool


def test_a_flagged_class_prior_is_in_log_report_and_note(caplog: pytest.LogCaptureFixture) -> None:
    metrics = metrics_of()
    metrics["selection"]["class_prior_warning"] = "class prior, sources differ: set a budget"
    with caplog.at_level(logging.WARNING):
        found = with_findings(metrics)
    assert "sources differ: set a budget" in caplog.text
    assert "class prior, sources differ: set a budget" in doubts_of(found)
    assert "sources differ: set a budget" in markdown_note(metrics=found)
