"""Figures of trainings."""

from __future__ import annotations

from collections.abc import Sequence
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

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_MARKED_POINTS = 16  # a curve with fewer points shows each of them


def plot_pu_history(pu_history: pd.DataFrame) -> Figure:
    """Return the course of PU training: the risk and its parts, ascent steps and, where measured, held-out 0-1 risk.

    Args:
        pu_history: one row an epoch; `epoch`, `risk`, `positive_risk`, `negative_risk`, `ascent_share` in [0, 1] and,
            optional or NaN, `held_out_zero_one_risk`.
    """
    epoch = pu_history["epoch"].to_numpy()
    held_out = _column(pu_history, "held_out_zero_one_risk")
    figure = new_figure(4.3)
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    risks = figure.add_subplot(grid[:, 0])
    curves = [
        ("PU risk", INK, _column(pu_history, "risk")),
        ("positive part", RELEVANT, _column(pu_history, "positive_risk")),
        ("negative part", "#8a8a8a", _column(pu_history, "negative_risk")),
    ]
    risks.axhline(0, color=MUTED, linewidth=0.8)
    _curves(risks, [(name, color, epoch, values) for name, color, values in curves])
    style_axes(risks, "epoch", "risk on the training batches")

    ascent = figure.add_subplot(
        grid[0, 1] if np.isfinite(held_out).any() else grid[:, 1], sharex=risks
    )
    _curves(ascent, [(None, ALERT, epoch, 100 * _column(pu_history, "ascent_share"))])
    ascent.set_ylim(0, max(5.0, ascent.get_ylim()[1]))
    style_axes(ascent, "epoch", "ascent steps (%)")
    final = [
        f"{percent(np.nanmean(_column(pu_history, 'ascent_share')))} of all steps were ascent steps"
    ]
    if np.isfinite(held_out).any():
        zero_one = figure.add_subplot(grid[1, 1], sharex=risks)
        zero_one.axhline(0, color=MUTED, linewidth=0.8)
        _curves(zero_one, [(None, STUDENT, epoch, held_out)])
        style_axes(zero_one, "epoch", "held-out 0-1 risk")
        ascent.set_xlabel("")
        final.append(f"held-out 0-1 risk {held_out[np.isfinite(held_out)][-1]:.3f} at the end")
    n_epochs = len(epoch)
    _integer_epochs(risks, epoch)
    finding = f"PU risk {_last(curves[0][2]):.3f} after {n_epochs:,} epoch{'s' * (n_epochs != 1)}"
    set_title(figure, finding, "; ".join(final))
    return figure


def plot_critic_history(history: pd.DataFrame, collapse: str | None) -> Figure:
    """Return how well the critic tells student from teacher, how often its risk was cut off, and the student's losses.

    Args:
        history: one row a record; `update`, `critic_auc` and `clamped_share` in [0, 1], `kl_loss`, `attention_loss`,
            `student_critic_loss`.
        collapse: why the critic was of no use in the end; None where it was of use.
    """
    update, auc = history["update"].to_numpy(), _column(history, "critic_auc")
    clamped = 100 * _column(history, "clamped_share")
    figure = new_figure(4.3)
    grid = figure.add_gridspec(2, 2)
    ranks = figure.add_subplot(grid[0, 0])
    ranks.axhline(0.5, color=MUTED, linewidth=0.8)
    _curves(ranks, [(None, INK, update, auc)])
    ranks.set_ylim(0.4, 1.02)
    style_axes(ranks, "", "critic's AUC")
    cuts = figure.add_subplot(grid[1, 0], sharex=ranks)
    _curves(cuts, [(None, ALERT, update, clamped)])
    cuts.set_ylim(-2, 102)
    style_axes(cuts, "student updates", "steps cut off (%)")
    losses = figure.add_subplot(grid[:, 1], sharex=ranks)
    curves = [
        ("divergence", STUDENT, _column(history, "kl_loss")),
        ("attention", RELEVANT, _column(history, "attention_loss")),
        ("critic", INK, _column(history, "student_critic_loss")),
    ]
    _curves(
        losses,
        [
            (name, color, update, values / values[0])
            for name, color, values in curves
            if values[0] > 0
        ],
    )
    style_axes(losses, "student updates", "student's losses, of their first values")
    losses.xaxis.set_major_formatter("{x:,.0f}")
    finding = "The critic tells student from teacher, and not too well"
    if collapse:
        finding = collapse.partition(":")[0].capitalize()
    cut = f"{percent(np.nanmean(clamped) / 100)} of its steps were cut off at zero"
    set_title(figure, finding, f"AUC {_last(auc):.3f} at the end; {cut}")
    return figure


def plot_distillation_history(
    distillation_history: pd.DataFrame, random_distillation_history: pd.DataFrame | None = None
) -> Figure:
    """Return loss and agreement with the teacher against student updates, for both students in the same axes.

    Each student is watched on its own images (held out where there are any), so the curves show that and how fast they
    settle; only the test images compare the two.

    Args:
        distillation_history: `update`, `loss`, and `held_out_agreement` or else `training_agreement` in [0, 1].
        random_distillation_history: the same for the student distilled from random images; None or empty without one.
    """
    runs = [("student", STUDENT, distillation_history)]
    if random_distillation_history is not None and len(random_distillation_history):
        runs.insert(0, ("random student", RANDOM, random_distillation_history))
    kind = (
        "held_out"
        if np.isfinite(_column(distillation_history, "held_out_agreement")).any()
        else "training"
    )
    figure = new_figure(4.0)
    losses, agreements = figure.subplots(1, 2, sharex=True)
    for axes, column, unit in ((losses, "loss", 1), (agreements, f"{kind}_agreement", 100)):
        _curves(
            axes,
            [
                (name, color, run["update"].to_numpy(), unit * _column(run, column))
                for name, color, run in runs
            ],
        )
    log_scale_when_wide(losses, np.concatenate([_column(run, "loss") for _, _, run in runs]))
    losses.xaxis.set_major_formatter("{x:,.0f}")
    style_axes(losses, "student updates", "distillation loss")
    style_axes(
        agreements, "student updates", f"agreement with the teacher, {kind.replace('_', '-')} (%)"
    )
    n_updates = int(distillation_history["update"].max())
    settled = {name: _last(_column(run, f"{kind}_agreement")) for name, _, run in runs}
    if np.isfinite(settled["student"]):
        images = "held-out" if kind == "held_out" else "training"
        finding = (
            f"Student and teacher agree on {percent(settled['student'])} of the {images} images"
        )
        evidence = f"after {n_updates:,} updates"
        if len(runs) == 2:
            evidence += (
                f"; the random student on {percent(settled['random student'])} of its own images"
            )
    else:
        finding = f"Distillation loss {_last(_column(distillation_history, 'loss')):.3f} after {n_updates:,} updates"
        evidence = "agreement was not measured"
    set_title(figure, finding, evidence)
    return figure


def _curves(axes: Axes, curves: Sequence[tuple[str | None, str, np.ndarray, np.ndarray]]) -> None:
    """Draw lines and name each at its end; points without a value are left out."""
    ends = []
    for name, color, x, y in curves:
        is_known = np.isfinite(y)
        if not is_known.any():
            continue
        marker = "o" if is_known.sum() <= MAX_MARKED_POINTS else None
        axes.plot(
            x[is_known],
            y[is_known],
            color=color,
            linewidth=1.8,
            marker=marker,
            markersize=4,
            label=name,
        )
        if name is not None:
            ends.append((float(y[is_known][-1]), name, color))
    if ends:
        axes.margins(x=0.02)
        _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write the names right of the axes at their lines' last values, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    text_in, axes_in = 0.16, 0.75 * axes.get_figure().get_figheight()  # type: ignore[union-attr]
    labels = [
        (
            (value - low) / (high - low),
            name.replace(" ", "\n", 1) if len(name) > 8 else name,
            color,
        )
        for value, name, color in sorted(ends)
    ]
    needs = [(label.count("\n") + 1) * text_in / axes_in for _, label, _ in labels]
    heights: list[float] = []
    for (height, _, _), above, need in zip(labels, [needs[0], *needs], needs, strict=False):
        heights.append(max(height, heights[-1] + (above + need) / 2) if heights else height)
    overflow = max(0.0, heights[-1] + needs[-1] / 2 - 1.05)
    for height, (_, label, color) in zip(heights, labels, strict=True):
        axes.annotate(
            label, (1.0, height - overflow), (5, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", fontsize=9, linespacing=1.0, color=darker(color), annotation_clip=False,
        )  # fmt: skip


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, all NaN where the table lacks it."""
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _last(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _integer_epochs(axes: Axes, epoch: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if len(epoch) == 1:
        axes.set_xlim(epoch[0] - 1, epoch[0] + 1)
