"""The sentences at the top of the report."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.reporting.findings import findings
from tests.reporting.toy_run import metrics_of


def test_the_first_sentence_compares_student_and_teacher() -> None:
    sentence = findings(metrics_of())[0]
    assert sentence == (
        "The student classifies 95.0 % of the test images correctly, 3.0 points below its teacher "
        "(98.0 %), with 6.0 times fewer parameters. It agrees with its teacher on 97.0 % of them."
    )


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
    assert sentence.endswith(f"random pool images reaches {random_accuracy:.1f} %.")


def test_a_run_without_a_random_student_states_no_gain() -> None:
    sentences = findings(metrics_of(gain=None))
    assert len(sentences) == 2
    assert "No student was distilled from random images" in sentences[1]


def test_the_gain_is_compared_with_chance() -> None:
    # The same gain on few and on many test images.
    small_test_set = findings(metrics_of(gain=0.02, n_test=100))[2]
    assert "no more than chance explains" in small_test_set
    # 1.96 * sqrt((0.95 * 0.05 + 0.93 * 0.07) / 100)
    assert "±6.6 points" in small_test_set
    assert "is more than chance explains" in findings(metrics_of(n_test=100_000))[2]
    # No gain is not compared with chance, only the width of chance is stated.
    assert "Note that drawing 400 test images" in findings(metrics_of(gain=0.0))[2]
