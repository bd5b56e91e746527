"""Training curves of the students and of the PU classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.reporting.sections.line_chart import Line, LineChart, line_chart

if TYPE_CHECKING:
    import pandas as pd

_UPDATES = "student updates"


@dataclass(frozen=True)
class CurveGroup:
    """Charts of one training."""

    figure: str
    """Name of the figure that the charts replace."""
    title: str
    caption: str
    charts: list[LineChart]


def student_curves(histories: Mapping[str, tuple[str, pd.DataFrame]]) -> CurveGroup | None:
    """Return loss and agreement of the students; None where nothing was recorded.

    Args:
        histories: by name of the student, its color and its history: `update`, `loss`, and
            `yardstick_agreement` or else `training_agreement`.
    """
    known = {name: found for name, found in histories.items() if len(found[1])}
    if not known:
        return None
    kind = "training"
    if all(
        np.isfinite(column(history, "yardstick_agreement")).any() for _, history in known.values()
    ):
        kind = "yardstick"
    losses = []
    agreements = []
    for name, (role, history) in known.items():
        update = column(history, "update")
        losses.append(Line(name, role, update, column(history, "loss")))
        agreement = 100 * column(history, f"{kind}_agreement")
        agreements.append(Line(name, role, update, agreement))
    charts = _drawn(
        line_chart("distillation loss", _UPDATES, losses),
        line_chart(f"agreement with the teacher, {kind} images (%)", _UPDATES, agreements),
    )
    if not charts:
        return None
    caption = (
        "Each student is measured on its own training images, so the curves show how it "
        "converges; only the test images compare students."
    )
    if kind == "yardstick":
        caption = "Agreement is that on the yardstick, images that no student learned from."
    return CurveGroup("distillation_curves", "Distillation", caption, charts)


def pu_curves(history: pd.DataFrame) -> CurveGroup | None:
    """Return risk, ascent steps and held-out risk of the PU classifier; None without a history.

    Args:
        history: one row per epoch, see `plot_pu_history`.
    """
    if not len(history):
        return None
    epoch = column(history, "epoch")
    risks = [
        Line("negative part", "other", epoch, column(history, "negative_risk")),
        Line("positive part", "relevant", epoch, column(history, "positive_risk")),
        Line("PU risk", "teacher", epoch, column(history, "risk")),
    ]
    ascent = [Line("", "alert", epoch, 100 * column(history, "ascent_share"))]
    held_out = [Line("", "student", epoch, column(history, "held_out_zero_one_risk"))]
    charts = _drawn(
        line_chart("risk on the training batches", "epoch", risks),
        line_chart("ascent steps (%)", "epoch", ascent, (0.0, 5.0)),
        line_chart("held-out 0-1 risk", "epoch", held_out),
    )
    caption = (
        "The negative part of the risk falls below zero when the classifier starts to overfit; "
        "ascent steps push it back."
    )
    return CurveGroup("pu_curves", "PU classifier", caption, charts)


def _drawn(*charts: LineChart | None) -> list[LineChart]:
    return [chart for chart in charts if chart is not None]


def column(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, all NaN where the table lacks it."""
    if name not in table:
        return np.full(len(table), np.nan)
    values: np.ndarray = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return values
