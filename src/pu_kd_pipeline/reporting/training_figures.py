"""Figures of training histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.reporting.style import (
    ALERT,
    INK,
    MUTED,
    RANDOM,
    RELEVANT,
    STUDENT,
    darker,
    log_scale_when_wide,
    new_figure,
    percent,
    set_title,
    style_axes,
)
from pu_kd_pipeline.reporting.summary import MODEL_TITLES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_MARKED_POINTS = 16  # a curve with fewer points shows each of them
_NEGATIVE_PART = "#8a8a8a"
_CONTROL = MODEL_TITLES["random_student"]


@dataclass(frozen=True)
class _Curve:
    """One line, named at its right end unless its axes show nothing else."""

    color: str
    x: np.ndarray
    y: np.ndarray
    """float64; points that are not finite are left out."""
    name: str = ""


def plot_pu_history(pu_history: pd.DataFrame) -> Figure:
    """Return the course of PU training: risk and its parts, ascent steps, and held-out 0-1 risk.

    Args:
        pu_history: one row per epoch; `epoch`, `risk`, `positive_risk`, `negative_risk`,
            `ascent_share` in [0, 1], and `held_out_zero_one_risk`, which may be missing or NaN.
    """
    epoch = pu_history["epoch"].to_numpy()
    risk = _column(pu_history, "risk")
    ascent_share = _column(pu_history, "ascent_share")
    held_out = _column(pu_history, "held_out_zero_one_risk")
    has_held_out = np.isfinite(held_out).any()
    figure = new_figure(4.3)
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))

    # The left column: the risk and its two parts.
    risks = figure.add_subplot(grid[:, 0])
    risks.axhline(0, color=MUTED, linewidth=0.8)
    positive_risk = _column(pu_history, "positive_risk")
    negative_risk = _column(pu_history, "negative_risk")
    _draw_curves(
        risks,
        [
            _Curve(INK, epoch, risk, "PU risk"),
            _Curve(RELEVANT, epoch, positive_risk, "positive part"),
            _Curve(_NEGATIVE_PART, epoch, negative_risk, "negative part"),
        ],
    )
    style_axes(risks, "epoch", "risk on the training batches")

    # Without a held-out risk the ascent steps have the whole right column.
    ascent_cell = grid[0, 1] if has_held_out else grid[:, 1]
    ascent = figure.add_subplot(ascent_cell, sharex=risks)
    _draw_curves(ascent, [_Curve(ALERT, epoch, 100 * ascent_share)])
    ascent.set_ylim(0, max(5.0, ascent.get_ylim()[1]))
    style_axes(ascent, "epoch", "ascent steps (%)")

    evidence = f"{percent(np.nanmean(ascent_share))} of all steps were ascent steps"
    if has_held_out:
        zero_one = figure.add_subplot(grid[1, 1], sharex=risks)
        zero_one.axhline(0, color=MUTED, linewidth=0.8)
        _draw_curves(zero_one, [_Curve(STUDENT, epoch, held_out)])
        style_axes(zero_one, "epoch", "held-out 0-1 risk")
        ascent.set_xlabel("")  # the panel below has the same axis
        evidence += f"; held-out 0-1 risk {_last(held_out):.3f} at the end"
    _mark_whole_epochs(risks, epoch)

    epochs = "epoch" if len(epoch) == 1 else "epochs"
    set_title(figure, f"PU risk {_last(risk):.3f} after {len(epoch):,} {epochs}", evidence)
    return figure


def plot_critic_history(history: pd.DataFrame, collapse: str | None) -> Figure:
    """Return how well the critic separates student from teacher, next to the student's losses.

    Args:
        history: one row per record; `update`, `critic_auc` and `clamped_share` in [0, 1],
            `kl_loss`, `attention_loss`, `student_critic_loss`.
        collapse: the reason why the critic gave no useful signal at the end; None if it did.
    """
    update = history["update"].to_numpy()
    auc = _column(history, "critic_auc")
    clamped_percent = 100 * _column(history, "clamped_share")
    figure = new_figure(4.3)
    grid = figure.add_gridspec(2, 2)

    ranks = figure.add_subplot(grid[0, 0])
    ranks.axhline(0.5, color=MUTED, linewidth=0.8)  # chance
    _draw_curves(ranks, [_Curve(INK, update, auc)])
    ranks.set_ylim(0.4, 1.02)
    style_axes(ranks, "", "critic's AUC")

    clamps = figure.add_subplot(grid[1, 0], sharex=ranks)
    _draw_curves(clamps, [_Curve(ALERT, update, clamped_percent)])
    clamps.set_ylim(-2, 102)
    style_axes(clamps, "student updates", "steps cut off (%)")

    losses = figure.add_subplot(grid[:, 1], sharex=ranks)
    curves = []
    for name, color, column in (
        ("divergence", STUDENT, "kl_loss"),
        ("attention", RELEVANT, "attention_loss"),
        ("critic", INK, "student_critic_loss"),
    ):
        values = _column(history, column)
        # A loss with weight 0 starts at 0, and has no course relative to its start.
        if values[0] > 0:
            curves.append(_Curve(color, update, values / values[0], name))
    _draw_curves(losses, curves)
    style_axes(losses, "student updates", "student's losses, of their first values")
    losses.xaxis.set_major_formatter("{x:,.0f}")

    finding = "The critic separates student and teacher, but not completely"
    if collapse:
        reason, _, _ = collapse.partition(":")
        finding = reason.capitalize()
    clamped = percent(np.nanmean(clamped_percent) / 100)
    evidence = f"AUC {_last(auc):.3f} at the end; {clamped} of its steps were cut off at zero"
    set_title(figure, finding, evidence)
    return figure


def plot_distillation_history(
    distillation_history: pd.DataFrame, random_distillation_history: pd.DataFrame | None = None
) -> Figure:
    """Return loss and agreement with the teacher against student updates, for both students.

    Both students are measured on the yardstick. Without one, each is measured on its own training
    images: the curves then show how fast it settles, and do not compare the two.

    Args:
        distillation_history: `update`, `loss`, and `yardstick_agreement` or else
            `training_agreement` in [0, 1].
        random_distillation_history: history of the student distilled from random images, in the
            same form; None or empty without such a student.
    """
    runs = {"student": distillation_history}
    colors = {"student": STUDENT, _CONTROL: RANDOM}
    if random_distillation_history is not None and len(random_distillation_history):
        # First, so that the line of the student is drawn on top.
        runs = {_CONTROL: random_distillation_history, **runs}
    kind = "training"
    if np.isfinite(_column(distillation_history, "yardstick_agreement")).any():
        kind = "yardstick"
    agreement = f"{kind}_agreement"  # the column

    figure = new_figure(4.0)
    losses, agreements = figure.subplots(1, 2, sharex=True)
    loss_curves = []
    agreement_curves = []
    for name, history in runs.items():
        update = history["update"].to_numpy()
        agreement_percent = 100 * _column(history, agreement)
        loss_curves.append(_Curve(colors[name], update, _column(history, "loss"), name))
        agreement_curves.append(_Curve(colors[name], update, agreement_percent, name))

    _draw_curves(losses, loss_curves)
    _draw_curves(agreements, agreement_curves)
    all_losses = np.concatenate([curve.y for curve in loss_curves])
    log_scale_when_wide(losses, all_losses)
    losses.xaxis.set_major_formatter("{x:,.0f}")
    style_axes(losses, "student updates", "distillation loss")
    style_axes(agreements, "student updates", f"agreement with the teacher, {kind} (%)")

    n_updates = int(distillation_history["update"].max())
    last_agreement = _last(_column(distillation_history, agreement))
    if not np.isfinite(last_agreement):
        last_loss = _last(_column(distillation_history, "loss"))
        finding = f"Distillation loss {last_loss:.3f} after {n_updates:,} updates"
        set_title(figure, finding, "agreement was not measured")
        return figure

    finding = f"Student and teacher agree on {percent(last_agreement)} of the {kind} images"
    evidence = f"after {n_updates:,} updates"
    if _CONTROL in runs:
        random_agreement = _last(_column(runs[_CONTROL], agreement))
        whose = "its own images" if kind == "training" else "them"
        evidence += f"; the {_CONTROL} on {percent(random_agreement)} of {whose}"
    set_title(figure, finding, evidence)
    return figure


def _draw_curves(axes: Axes, curves: Sequence[_Curve]) -> None:
    """Draw lines through the known points of the curves, each named at its end."""
    named = []
    for curve in curves:
        is_known = np.isfinite(curve.y)
        n_points = is_known.sum()
        if not n_points:
            continue
        # Few points look like a smooth course where only the line between them is shown.
        marker = "o" if n_points <= MAX_MARKED_POINTS else None
        axes.plot(
            curve.x[is_known],
            curve.y[is_known],
            color=curve.color,
            linewidth=1.8,
            marker=marker,
            markersize=4,
            label=curve.name or None,
        )
        if curve.name:
            named.append(curve)
    if named:
        axes.margins(x=0.02)
        _label_ends(axes, named)


def _label_ends(axes: Axes, curves: Sequence[_Curve]) -> None:
    """Write the names right of the axes at their last values, moved apart where they overlap."""
    low, high = axes.get_ylim()
    line_in = 0.16
    axes_in = 0.75 * axes.get_figure().get_figheight()  # type: ignore[union-attr]
    by_height = sorted(curves, key=lambda curve: (_last(curve.y), curve.name))

    # From the bottom to the top, each name as low as its curve and the name below it allow.
    # All heights are shares of the axes, from 0 at the bottom to 1 at the top.
    labels: list[str] = []
    needs: list[float] = []
    heights: list[float] = []
    for curve in by_height:
        label = curve.name
        if len(label) > 8:
            label = label.replace(" ", "\n", 1)
        need = (label.count("\n") + 1) * line_in / axes_in
        height = (_last(curve.y) - low) / (high - low)
        if heights:
            lowest_free = heights[-1] + (needs[-1] + need) / 2
            height = max(height, lowest_free)
        labels.append(label)
        needs.append(need)
        heights.append(height)

    # Moving up may have pushed the last name above the axes: all come down by as much.
    overflow = max(0.0, heights[-1] + needs[-1] / 2 - 1.05)
    for curve, label, height in zip(by_height, labels, heights, strict=True):
        axes.annotate(
            label,
            (1.0, height - overflow),
            (5, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=9,
            linespacing=1.0,
            color=darker(curve.color),
            annotation_clip=False,
        )


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, all NaN where the table lacks it."""
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _last(values: np.ndarray) -> float:
    """Return the last finite value; NaN if there is none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan")
    return float(known[-1])


def _mark_whole_epochs(axes: Axes, epoch: np.ndarray) -> None:
    """Put ticks on whole epochs only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if len(epoch) == 1:
        # A single point has no range; the locator would put ticks on fractions around it.
        axes.set_xlim(epoch[0] - 1, epoch[0] + 1)
