"""Figures of classes: weights and accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Three shapes that stay visible where they coincide: a hollow square around a bar with a dot on it.
_MARKS: dict[str, dict[str, Any]] = {
    "s": {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.7},
    "|": {"markersize": 16, "markeredgewidth": 2.4},
    "o": {"markersize": 6.5, "markeredgecolor": "white"},
}


def plot_class_weights(class_weights: pd.DataFrame) -> Figure:
    """Return the teacher's probability mass per class beside the weight that evens it out (Eq. 7), clipped ones marked.

    Args:
        class_weights: one row a class; `class_name`, `teacher_mass` >= 0, `raw_weight`, `weight` >= 0, `is_clipped`.
    """
    table = class_weights.sort_values("teacher_mass", ascending=False, kind="stable").reset_index(
        drop=True
    )
    mass, weight = table["teacher_mass"].to_numpy(np.float64), table["weight"].to_numpy(np.float64)
    clipped, names = table["is_clipped"].to_numpy(bool), table["class_name"].astype(str).tolist()
    n_classes, place = len(table), np.arange(len(table))
    is_named = n_classes <= MAX_NAMED_CLASSES
    if is_named:
        figure = new_figure(max(2.6, 1.3 + 0.25 * n_classes))
        masses, weights = figure.subplots(1, 2, sharey=True)
        masses.barh(place, mass, height=0.62, color=TEACHER)
        weights.hlines(place, 1.0, weight, color=GRID, linewidth=2)
        weights.axvline(1, color=MUTED, linewidth=0.8)
        weights.plot(weight[~clipped], place[~clipped], "o", color=STUDENT, markersize=6)
        weights.plot(weight[clipped], place[clipped], "D", color=ALERT, markersize=6)
        for row in place[clipped]:
            weights.annotate(
                f"clipped from {table['raw_weight'][row]:.3g}", (weight[row], row), (7, 0), textcoords="offset points",
                color=DARK_ALERT, fontsize=8, va="center",
            )  # fmt: skip
        masses.set_yticks(place, [shorten(name) for name in names])
        masses.invert_yaxis()
        weights.set_xlim(0, max(1.0, weight.max()) * (1.5 if clipped.any() else 1.1))
        style_axes(masses, "teacher's probability mass (images)", "", grid="x")
        style_axes(weights, "weight of the class in the distillation loss", "", grid="x")
        masses.tick_params(axis="y", length=0)
        weights.tick_params(axis="y", length=0)
    else:
        figure = new_figure(5.0)
        masses, weights = figure.subplots(2, 1, sharex=True)
        masses.fill_between(place + 1, mass, step="mid", color=TEACHER, alpha=0.25, linewidth=0)
        masses.step(place + 1, mass, where="mid", color=TEACHER, linewidth=1.2)
        log_scale_when_wide(masses, mass)
        weights.axhline(1, color=MUTED, linewidth=0.8)
        size = 4 if n_classes <= 300 else 2.5
        weights.plot(
            place[~clipped] + 1,
            weight[~clipped],
            "o",
            color=STUDENT,
            markersize=size,
            label="weight",
        )
        if clipped.any():
            weights.plot(
                place[clipped] + 1,
                weight[clipped],
                "D",
                color=ALERT,
                markersize=size,
                label="clipped weight",
            )
            weights.legend(frameon=False, fontsize=9, loc="upper left")
        log_scale_when_wide(weights, weight)
        weights.set_xlim(0, n_classes + 1)
        style_axes(masses, "", "teacher's mass (images)")
        style_axes(weights, "class, by decreasing teacher's mass", "weight")
    evidence = f"weights from {weight.min():.3g} to {weight.max():.3g}; " + (
        f"{int(clipped.sum()):,} of {n_classes:,} clipped" if clipped.any() else "none clipped"
    )
    if mass.min() > 0:
        times = (
            f"{mass.max() / mass.min():,.3g}" if mass.max() < 1000 * mass.min() else "over 1,000"
        )
        finding = f"The teacher gives “{shorten(names[0])}” {times} times the mass of “{shorten(names[-1])}”"
    else:
        finding = f"The teacher finds {int((mass <= 0).sum()):,} of {n_classes:,} classes nowhere in the manifest"
    set_title(figure, finding, evidence)
    return figure


def plot_per_class_accuracy(
    metrics: Mapping[str, Any], class_names: Sequence[str] | None = None
) -> Figure:
    """Return the test accuracy of student, teacher and, where there is one, random student for each class.

    Args:
        metrics: `teacher` and `student`, perhaps `random_student`, each with `accuracy` and `per_class_accuracy`:
            K values in [0, 1], None or NaN for a class without test images.
        class_names: K names; the class numbers without them.
    """
    models = [
        (
            label,
            color,
            marker,
            np.array(metrics[key]["per_class_accuracy"], dtype=np.float64) * 100,
        )
        for key, label, color, marker in (
            ("random_student", "random student", RANDOM, "s"),
            ("teacher", "teacher", TEACHER, "|"),
            ("student", "student", STUDENT, "o"),
        )
        if (metrics.get(key) or {}).get("per_class_accuracy")
    ]
    accuracy = {label: values for label, _, _, values in models}
    n_classes = len(accuracy["student"])
    names = (
        [str(name) for name in class_names]
        if class_names is not None and len(class_names) == n_classes
        else None
    )
    names = names or [str(index) for index in range(n_classes)]
    difference = accuracy["student"] - accuracy["teacher"]
    if n_classes <= MAX_NAMED_CLASSES:
        figure = new_figure(max(2.6, 1.7 + 0.27 * n_classes))
        _dots_per_class(figure.add_subplot(), models, names)
    else:
        figure = new_figure(4.6)
        accuracies, differences = figure.subplots(1, 2)
        _sorted_accuracies(accuracies, models)
        _sorted_differences(differences, difference, names)
    worst = int(np.nanargmin(difference))
    overall = 100 * (metrics["student"]["accuracy"] - metrics["teacher"]["accuracy"])
    verb = "loses {} to" if overall < 0 else "gains {} on"
    finding = (
        f"The student {verb.format(f'{abs(overall):.1f} points')} its teacher over all test images"
    )
    if round(overall, 1) == 0:
        finding = "The student equals its teacher over all test images"
    loss = f"largest loss in class “{shorten(names[worst])}”: {points(difference[worst])}"
    set_title(figure, finding, loss if difference[worst] < 0 else "no class loses")
    return figure


def _dots_per_class(
    axes: Axes, models: Sequence[tuple[str, str, str, np.ndarray]], names: Sequence[str]
) -> None:
    values = np.stack([accuracies for _, _, _, accuracies in models])
    student = next(accuracies for label, _, _, accuracies in models if label == "student")
    order = np.argsort(-np.nan_to_num(student, nan=-1.0), kind="stable")
    place = np.arange(len(names))
    has_value = np.isfinite(values[:, order]).any(axis=0)
    lowest, highest = (np.full(len(names), np.nan) for _ in range(2))
    lowest[has_value] = np.nanmin(values[:, order][:, has_value], axis=0)
    highest[has_value] = np.nanmax(values[:, order][:, has_value], axis=0)
    axes.hlines(place, lowest, highest, color="#d0d0d0", linewidth=2, zorder=1)
    for label, color, marker, accuracies in models:
        axes.plot(
            accuracies[order],
            place,
            marker,
            color=color,
            label=label,
            clip_on=False,
            **_MARKS[marker],
        )
    axes.set_yticks(place, [shorten(names[index]) for index in order])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(max(0.0, 5 * np.floor((np.nanmin(values) - 1) / 5)), 100)
    style_axes(axes, "test accuracy (%)", "", grid="x")
    axes.tick_params(axis="y", length=0)
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles[::-1], labels[::-1], loc="outside lower left", ncols=3, frameon=False, fontsize=9, handletextpad=0.2
    )  # fmt: skip


def _sorted_accuracies(axes: Axes, models: Sequence[tuple[str, str, str, np.ndarray]]) -> None:
    """Draw each model's quantile curve: its K accuracies, sorted on their own."""
    for label, color, _, accuracies in models:
        ranked = np.sort(accuracies[np.isfinite(accuracies)])
        share = 100 * (np.arange(len(ranked)) + 0.5) / len(ranked)
        axes.plot(share, ranked, color=color, linewidth=1.8, label=label)
    axes.set_xlim(0, 100)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right", frameon=False, fontsize=9)
    style_axes(axes, "classes, each model's own order (%)", "test accuracy of the class (%)")


def _sorted_differences(axes: Axes, difference: np.ndarray, names: Sequence[str]) -> None:
    """Draw student minus teacher for every class, sorted, and name the three that lost most."""
    known = np.flatnonzero(np.isfinite(difference))
    order = known[np.argsort(difference[known], kind="stable")]
    rank = np.arange(1, len(order) + 1)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.fill_between(rank, difference[order], step="mid", color=STUDENT, alpha=0.2, linewidth=0)
    axes.step(rank, difference[order], where="mid", color=STUDENT, linewidth=1.5)
    median = float(np.median(difference[order]))
    most = [f"“{shorten(names[index])}” {points(difference[index])}" for index in order[:3]]
    n_losing = int((difference[order] < 0).sum())
    note = "\n".join(
        [f"median {points(median)}; {n_losing:,} of {len(order):,} lose", "most:", *most]
    )
    axes.text(
        0.98, 0.03, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5, color=INK
    )
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.1 * (high - low), high)
    axes.set_xlim(0, len(order) + 1)
    style_axes(axes, "class, by difference", "student minus teacher (points)")
