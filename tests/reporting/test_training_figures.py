"""Figures of histories, for any number of epochs and with values that were not measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.reporting.training_figures import (
    plot_critic_history,
    plot_distillation_history,
    plot_pu_history,
)
from tests.reporting.toy_run import history, words


@pytest.mark.parametrize("n_epochs", [1, 3, 200])
def test_pu_history_shows_ascent_steps_and_held_out_risk(n_epochs: int) -> None:
    text = words(plot_pu_history(history(n_epochs, held_out_zero_one_risk=0.125)))
    assert "held-out 0-1 risk 0.125 at the end" in text
    assert "25.0 % of all steps were ascent steps" in text


@pytest.mark.parametrize("n_epochs", [1, 3, 200])
@pytest.mark.parametrize("columns", [{}, {"held_out_zero_one_risk": np.nan}])
def test_a_held_out_risk_that_was_not_measured_has_no_axes(
    n_epochs: int, columns: dict[str, float]
) -> None:
    measured = plot_pu_history(history(n_epochs, held_out_zero_one_risk=0.125))
    figure = plot_pu_history(history(n_epochs, **columns))
    n_axes = len(figure.axes)
    assert n_axes == len(measured.axes) - 1
    assert "0-1 risk" not in words(figure)
    figure.canvas.draw()


def test_distillation_history_compares_both_students_on_the_yardstick() -> None:
    student = history(5, yardstick_agreement=0.9)
    random_student = history(5, yardstick_agreement=0.8)
    text = words(plot_distillation_history(student, random_student))
    assert "agree on 90.0 % of the yardstick images" in text
    assert "the student of random images on 80.0 % of them" in text


@pytest.mark.parametrize("random_history", [None, history(0)])
def test_distillation_history_falls_back_to_the_training_images(
    random_history: pd.DataFrame | None,
) -> None:
    student = history(5, training_agreement=0.7)
    # A stage without a random student saves an empty history.
    text = words(plot_distillation_history(student, random_history))
    assert "agree on 70.0 % of the training images" in text
    assert "random" not in text


def test_distillation_history_without_agreement_reports_the_loss() -> None:
    text = words(plot_distillation_history(history(5)))
    assert "Distillation loss 0.200 after 50 updates" in text
    assert "agreement was not measured" in text


def critic_history() -> pd.DataFrame:
    return history(
        5,
        critic_auc=0.7,
        clamped_share=0.25,
        kl_loss=1.0,
        attention_loss=0.0,  # switched off: it has no course relative to its start
        student_critic_loss=0.5,
    )


def test_critic_history_reports_auc_and_clamped_steps() -> None:
    text = words(plot_critic_history(critic_history(), collapse=None))
    assert "AUC 0.700 at the end; 25.0 % of its steps were cut off at zero" in text
    assert "attention" not in text


def test_critic_history_of_a_collapsed_critic_starts_with_the_reason() -> None:
    figure = plot_critic_history(critic_history(), collapse="the critic always wins: AUC 1.000")
    assert figure.get_suptitle() == "The critic always wins"
