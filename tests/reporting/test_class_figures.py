"""Figures of classes, for any number of them."""

from __future__ import annotations

from typing import Any

import pytest

from pu_kd_pipeline.reporting.class_figures import plot_class_weights, plot_per_class_accuracy
from pu_kd_pipeline.reporting.style import MAX_NAMED_CLASSES
from tests.reporting.toy_run import class_names, metrics_of, weights, words


def check_readable(figure: Any, n_classes: int) -> None:
    """Assert that the figure fits a page, and names all classes or none."""
    assert figure.get_figheight() <= 13
    axes, *_ = figure.axes
    labels = sorted(label.get_text() for label in axes.get_yticklabels())
    names = sorted(class_names(n_classes))
    if n_classes <= MAX_NAMED_CLASSES:
        assert labels == names
    else:
        # Their axis then has numbers.
        assert not set(labels) & set(names)


@pytest.mark.parametrize("n_classes", [2, 10, 40, 41, 1000])
def test_class_weights_stay_readable_for_any_number_of_classes(n_classes: int) -> None:
    figure = plot_class_weights(weights(n_classes, n_clipped=1))
    check_readable(figure, n_classes)


@pytest.mark.parametrize("n_classes", [2, 10, 40, 41, 1000])
def test_accuracies_stay_readable_for_any_number_of_classes(n_classes: int) -> None:
    metrics = metrics_of(n_classes=n_classes)
    figure = plot_per_class_accuracy(metrics, class_names(n_classes))
    check_readable(figure, n_classes)


@pytest.mark.parametrize(
    ("n_classes", "n_clipped", "text"),
    [
        (10, 1, "clipped from"),
        (10, 1, "1 of 10 clipped"),
        (100, 2, "2 of 100 clipped"),
        (10, 0, "none clipped"),
    ],
)
def test_clipped_weights_are_marked_and_counted(n_classes: int, n_clipped: int, text: str) -> None:
    class_weights = weights(n_classes, n_clipped)
    assert text in words(plot_class_weights(class_weights))


def test_classes_without_mass_are_counted() -> None:
    class_weights = weights(10)
    # Without mass there is no ratio to the largest class.
    class_weights.loc[0, "teacher_mass"] = 0.0
    assert "1 of 10 classes nowhere" in words(plot_class_weights(class_weights))


@pytest.mark.parametrize("n_classes", [10, 100])
def test_the_class_with_the_largest_loss_is_named(n_classes: int) -> None:
    # The last class has no test images, and is left out.
    metrics = metrics_of(gain=None, n_classes=n_classes)
    metrics["student"]["per_class_accuracy"][3] = 0.5
    text = words(plot_per_class_accuracy(metrics, class_names(n_classes)))
    assert "“class 3”: −48.0 points" in text
    assert "loses 3.0 points to its teacher" in text


@pytest.mark.parametrize(
    ("difference", "finding"),
    [(0.0, "equals its teacher"), (0.01, "gains 1.0 points on its teacher")],
)
def test_a_student_that_lost_nothing_is_reported_as_such(difference: float, finding: str) -> None:
    metrics = metrics_of(gain=None)
    accuracy = metrics["teacher"]["accuracy"] + difference
    student = metrics["student"]
    student["accuracy"] = accuracy
    student["per_class_accuracy"] = [accuracy] * 10

    text = words(plot_per_class_accuracy(metrics))
    assert finding in text
    assert "no class loses" in text


def test_the_control_has_the_name_that_tables_use() -> None:
    figure = plot_per_class_accuracy(metrics_of(), class_names(10))
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            labels += [text.get_text() for text in legend.get_texts()]
    assert "student of random images" in labels


@pytest.mark.parametrize(
    ("attrs", "is_read", "text"),
    [
        ({"mean_sample_weight": 0.43}, True, "mean weight of an image 0.43"),
        ({"class_weighting": {"mode": "balanced"}}, True, "are drawn evenly instead"),
        ({"class_weighting": {"mode": "adjusted"}}, True, "logits are adjusted instead"),
        ({}, False, "this student's objective does not read them"),
    ],
)
def test_the_figure_states_what_else_the_weights_do(
    attrs: dict[str, Any], is_read: bool, text: str
) -> None:
    class_weights = weights(10)
    class_weights.attrs.update(attrs)
    shown = words(plot_class_weights(class_weights, is_read=is_read))
    assert text in shown
    plain = words(plot_class_weights(weights(10)))
    assert text not in plain


def test_equal_weights_have_no_range() -> None:
    class_weights = weights(10).assign(weight=1.0, raw_weight=1.0, is_clipped=False)
    assert "all weights are 1" in words(plot_class_weights(class_weights))
