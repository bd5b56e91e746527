"""Figures of classes: their weights in the loss, and their accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pu_kd_pipeline.reporting.style import (
    ALERT,
    DARK_ALERT,
    GRID,
    INK,
    MAX_NAMED_CLASSES,
    MUTED,
    RANDOM,
    STUDENT,
    TEACHER,
    log_scale_when_wide,
    new_figure,
    points,
    set_title,
    shorten,
    style_axes,
)
from pu_kd_pipeline.reporting.summary import MODEL_TITLES
from pu_kd_pipeline.storage.manifest import MEAN_SAMPLE_WEIGHT, WEIGHTING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Three shapes that stay visible where they coincide: a hollow square around a bar with a dot on it.
_MARKERS: dict[str, dict[str, Any]] = {
    "s": {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.7},
    "|": {"markersize": 16, "markeredgewidth": 2.4},
    "o": {"markersize": 6.5, "markeredgecolor": "white"},
}

# Key in the metrics, label, color, marker. Later ones are drawn on top, so the student comes last.
_MODELS = (
    ("random_student", MODEL_TITLES["random_student"], RANDOM, "s"),
    ("teacher", "teacher", TEACHER, "|"),
    ("student", "student", STUDENT, "o"),
)
# Modes of class weighting that do not weigh classes, and what they do instead.
_NOTES = {
    "balanced": "; the classes of pool images are drawn evenly instead",
    "adjusted": "; the student's logits are adjusted instead",
}
_VISIBLE_CHANGE = 0.005
_STUDENT = "student"
_TEACHER = "teacher"


# --- weights ---


@dataclass(frozen=True)
class _ClassWeights:
    """The classes by decreasing mass; all arrays are (K,)."""

    names: list[str]
    mass: np.ndarray
    raw_weight: np.ndarray
    weight: np.ndarray
    is_clipped: np.ndarray
    note: str
    """What else a reader needs to know about the weights."""

    @property
    def place(self) -> np.ndarray:
        """(K,) int64: the position of each class on the axis."""
        return np.arange(len(self.names))


def plot_class_weights(class_weights: pd.DataFrame, *, is_read: bool = True) -> Figure:
    """Return the teacher's probability mass per class next to the weight of the class in the loss.

    Args:
        class_weights: one row per class; `class_name`, `teacher_mass` >= 0, `raw_weight`,
            `weight` >= 0, `is_clipped`. The attrs state the mode, and the mean weight of an image.
        is_read: whether the student's objective reads the weights.
    """
    table = class_weights.sort_values("teacher_mass", ascending=False, kind="stable")
    classes = _ClassWeights(
        names=table["class_name"].astype(str).tolist(),
        mass=table["teacher_mass"].to_numpy(np.float64),
        raw_weight=table["raw_weight"].to_numpy(),
        weight=table["weight"].to_numpy(np.float64),
        is_clipped=table["is_clipped"].to_numpy(bool),
        note=_weight_note(class_weights.attrs, is_read=is_read),
    )
    if len(classes.names) <= MAX_NAMED_CLASSES:
        figure = _weights_by_name(classes)
    else:
        figure = _weights_by_rank(classes)
    set_title(figure, _mass_finding(classes), _weight_evidence(classes))
    return figure


def _weights_by_name(classes: _ClassWeights) -> Figure:
    """Draw one named row per class: its mass as a bar, its weight as a point off the line at 1."""
    place = classes.place
    weight = classes.weight
    is_clipped = classes.is_clipped
    figure = new_figure(max(2.6, 1.3 + 0.25 * len(place)))
    masses, weights = figure.subplots(1, 2, sharey=True)

    masses.barh(place, classes.mass, height=0.62, color=TEACHER)
    weights.hlines(place, 1.0, weight, color=GRID, linewidth=2)
    weights.axvline(1, color=MUTED, linewidth=0.8)
    weights.plot(weight[~is_clipped], place[~is_clipped], "o", color=STUDENT, markersize=6)
    weights.plot(weight[is_clipped], place[is_clipped], "D", color=ALERT, markersize=6)
    for row in place[is_clipped]:
        weights.annotate(
            f"clipped from {classes.raw_weight[row]:.3g}",
            (weight[row], row),
            (7, 0),
            textcoords="offset points",
            color=DARK_ALERT,
            fontsize=8,
            va="center",
        )
    masses.set_yticks(place, [shorten(name) for name in classes.names])
    masses.invert_yaxis()  # the first row, the class with the largest mass, on top
    # The note on a clipped weight stands right of its point and needs the room.
    room = 1.5 if is_clipped.any() else 1.1
    weights.set_xlim(0, max(1.0, weight.max()) * room)
    style_axes(masses, "teacher's probability mass (images)", "", grid="x")
    style_axes(weights, "weight of the class in the distillation loss", "", grid="x")
    masses.tick_params(axis="y", length=0)
    weights.tick_params(axis="y", length=0)
    return figure


def _weights_by_rank(classes: _ClassWeights) -> Figure:
    """Draw mass and weight against the rank of a class: so many names cannot be read."""
    n_classes = len(classes.names)
    rank = classes.place + 1
    is_clipped = classes.is_clipped
    figure = new_figure(5.0)
    masses, weights = figure.subplots(2, 1, sharex=True)

    masses.fill_between(
        rank,
        classes.mass,
        step="mid",
        color=TEACHER,
        alpha=0.25,
        linewidth=0,
    )
    masses.step(rank, classes.mass, where="mid", color=TEACHER, linewidth=1.2)
    log_scale_when_wide(masses, classes.mass)

    weights.axhline(1, color=MUTED, linewidth=0.8)
    size = 4 if n_classes <= 300 else 2.5  # larger points of so many classes would overlap
    weights.plot(
        rank[~is_clipped],
        classes.weight[~is_clipped],
        "o",
        color=STUDENT,
        markersize=size,
        label="weight",
    )
    if is_clipped.any():
        weights.plot(
            rank[is_clipped],
            classes.weight[is_clipped],
            "D",
            color=ALERT,
            markersize=size,
            label="clipped weight",
        )
        weights.legend(frameon=False, fontsize=9, loc="upper left")
    log_scale_when_wide(weights, classes.weight)
    weights.set_xlim(0, n_classes + 1)
    style_axes(masses, "", "teacher's mass (images)")
    style_axes(weights, "class, by decreasing teacher's mass", "weight")
    return figure


def _mass_finding(classes: _ClassWeights) -> str:
    largest = classes.mass.max()
    smallest = classes.mass.min()
    if not smallest > 0:
        n_missing = int((classes.mass <= 0).sum())
        n_classes = len(classes.names)
        return f"The teacher finds {n_missing:,} of {n_classes:,} classes nowhere in these images"

    # A mass near zero is noise of the softmax, and so is the exact ratio.
    times = "over 1,000"
    if largest < 1000 * smallest:
        times = f"{largest / smallest:,.3g}"
    first = shorten(classes.names[0])
    last = shorten(classes.names[-1])
    return f"The teacher gives “{first}” {times} times the mass of “{last}”"


def _weight_evidence(classes: _ClassWeights) -> str:
    n_clipped = int(classes.is_clipped.sum())
    clipped = "none clipped"
    if n_clipped:
        clipped = f"{n_clipped:,} of {len(classes.names):,} clipped"

    lowest = classes.weight.min()
    highest = classes.weight.max()
    range_of_weights = f"weights from {lowest:.3g} to {highest:.3g}; {clipped}"
    if lowest == highest:
        range_of_weights = f"all weights are {lowest:.3g}"
    return range_of_weights + classes.note


def _weight_note(attrs: Mapping[Any, Any], *, is_read: bool) -> str:
    """Return what the attrs of class weights add to their range, such as "; mean of images 0.8"."""
    note = ""
    mean = attrs.get(MEAN_SAMPLE_WEIGHT)
    # Only the weights of Eq. 7 change the learning rate.
    if mean is not None and abs(mean - 1) >= _VISIBLE_CHANGE:
        note = f"; mean weight of an image {mean:.2f}"
    mode = attrs.get(WEIGHTING, {}).get("mode")
    note += _NOTES.get(mode, "")
    if not is_read:
        note += "; this student's objective does not read them"
    return note


# --- accuracies ---


@dataclass(frozen=True)
class _ModelAccuracies:
    """The accuracies of one model per class, and how it is drawn."""

    label: str
    color: str
    marker: str
    percent: np.ndarray
    """(K,) float64; NaN for a class without test images."""


def plot_per_class_accuracy(
    metrics: Mapping[str, Any], class_names: Sequence[str] | None = None
) -> Figure:
    """Return the test accuracy per class of the student, the teacher and the random student.

    Args:
        metrics: `teacher` and `student`, optionally `random_student`, each with `accuracy` and
            `per_class_accuracy`: K values in [0, 1], None or NaN for a class without test images.
        class_names: K names; without them, and where their number differs, classes are numbered.
    """
    models = _model_accuracies(metrics)
    accuracy = {model.label: model.percent for model in models}
    difference = accuracy[_STUDENT] - accuracy[_TEACHER]

    n_classes = len(difference)
    names = [str(name) for name in class_names or ()]
    if len(names) != n_classes:
        names = [str(index) for index in range(n_classes)]

    if n_classes <= MAX_NAMED_CLASSES:
        figure = new_figure(max(2.6, 1.7 + 0.27 * n_classes))
        _draw_dots_per_class(figure.add_subplot(), models, names)
    else:
        figure = new_figure(4.6)
        accuracies, differences = figure.subplots(1, 2)
        _draw_sorted_accuracies(accuracies, models)
        _draw_sorted_differences(differences, difference, names)

    overall = 100 * (metrics["student"]["accuracy"] - metrics["teacher"]["accuracy"])
    worst = int(np.nanargmin(difference))
    evidence = "no class loses"
    if difference[worst] < 0:
        loss = points(difference[worst])
        evidence = f"largest loss in class “{shorten(names[worst])}”: {loss}"
    set_title(figure, _accuracy_finding(overall), evidence)
    return figure


def _model_accuracies(metrics: Mapping[str, Any]) -> list[_ModelAccuracies]:
    models = []
    # A run without a random student lacks its entry, or has an empty one.
    for key, label, color, marker in _MODELS:
        per_class = (metrics.get(key) or {}).get("per_class_accuracy")
        if per_class:
            # None becomes NaN.
            percent = np.array(per_class, dtype=np.float64) * 100
            models.append(_ModelAccuracies(label, color, marker, percent))
    return models


def _accuracy_finding(difference_points: float) -> str:
    if round(difference_points, 1) == 0:
        return "The student equals its teacher over all test images"
    size = f"{abs(difference_points):.1f} points"
    if difference_points < 0:
        return f"The student loses {size} to its teacher over all test images"
    return f"The student gains {size} on its teacher over all test images"


def _draw_dots_per_class(
    axes: Axes, models: Sequence[_ModelAccuracies], names: Sequence[str]
) -> None:
    """Draw one named row per class with a marker per model, the student's best class on top."""
    student = next(model.percent for model in models if model.label == _STUDENT)
    # Classes without test images come last.
    order = np.argsort(-np.nan_to_num(student, nan=-1.0), kind="stable")
    place = np.arange(len(names))
    values = np.stack([model.percent[order] for model in models])

    # A line from the lowest to the highest model. nanmin warns of classes that have no value.
    has_value = np.isfinite(values).any(axis=0)
    lowest = np.full(len(names), np.nan)
    highest = np.full(len(names), np.nan)
    lowest[has_value] = np.nanmin(values[:, has_value], axis=0)
    highest[has_value] = np.nanmax(values[:, has_value], axis=0)
    axes.hlines(
        place,
        lowest,
        highest,
        color="#d0d0d0",
        linewidth=2,
        zorder=1,
    )

    for model in models:
        axes.plot(
            model.percent[order],
            place,
            model.marker,
            color=model.color,
            label=model.label,
            clip_on=False,
            **_MARKERS[model.marker],
        )
    axes.set_yticks(place, [shorten(names[index]) for index in order])
    axes.set_ylim(len(names) - 0.4, -0.6)
    # The next multiple of 5 that leaves a point of room left of the lowest marker.
    left = 5 * np.floor((np.nanmin(values) - 1) / 5)
    axes.set_xlim(max(0.0, left), 100)
    style_axes(axes, "test accuracy (%)", "", grid="x")
    axes.tick_params(axis="y", length=0)

    # Reversed: the models are drawn from the back to the front, and the student is named first.
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside lower left",
        ncols=3,
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
    )


def _draw_sorted_accuracies(axes: Axes, models: Sequence[_ModelAccuracies]) -> None:
    """Draw each model's quantile curve: its own accuracies per class, sorted."""
    for model in models:
        # A point per class in the middle of its share: K classes, K intervals of equal width.
        ranked = np.sort(model.percent[np.isfinite(model.percent)])
        share = 100 * (np.arange(len(ranked)) + 0.5) / len(ranked)
        axes.plot(share, ranked, color=model.color, linewidth=1.8, label=model.label)
    axes.set_xlim(0, 100)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right", frameon=False, fontsize=9)
    style_axes(axes, "classes, each model's own order (%)", "test accuracy of the class (%)")


def _draw_sorted_differences(axes: Axes, difference: np.ndarray, names: Sequence[str]) -> None:
    """Draw student minus teacher for every class, sorted, and name the three that lost most."""
    known = np.flatnonzero(np.isfinite(difference))
    order = known[np.argsort(difference[known], kind="stable")]
    ranked = difference[order]
    rank = np.arange(1, len(order) + 1)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.fill_between(
        rank,
        ranked,
        step="mid",
        color=STUDENT,
        alpha=0.2,
        linewidth=0,
    )
    axes.step(rank, ranked, where="mid", color=STUDENT, linewidth=1.5)

    median = points(float(np.median(ranked)))
    n_losing = int((ranked < 0).sum())
    lines = [f"median {median}; {n_losing:,} of {len(order):,} lose", "most:"]
    for index in order[:3]:
        lines.append(f"“{shorten(names[index])}” {points(difference[index])}")
    axes.text(
        0.98,
        0.03,
        "\n".join(lines),
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=INK,
    )
    # The note is in the lower right corner, where a curve of small losses would run through it.
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.1 * (high - low), high)
    axes.set_xlim(0, len(order) + 1)
    style_axes(axes, "class, by difference", "student minus teacher (points)")
