"""The figures of a run's report: one record per figure, from its catalog name to how it is drawn.

The outputs of the stage `reporting`, the order of the page and its captions all follow from `REPORT_FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pu_kd_pipeline.reporting.class_figures import plot_class_weights, plot_per_class_accuracy
from pu_kd_pipeline.reporting.selection_figures import plot_contact_sheet, plot_score_histogram
from pu_kd_pipeline.reporting.training_figures import plot_distillation_history, plot_pu_history

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pu_kd_pipeline.images.store import ImageStore


@dataclass(frozen=True)
class RunResults:
    """What a run has saved, as far as figures show it; each field is the catalog entry of that name."""

    metrics: Mapping[str, Any]
    class_prior: Mapping[str, Any]
    pool_scores: pd.DataFrame
    manifest: pd.DataFrame
    pool_images: ImageStore
    pu_history: pd.DataFrame
    class_weights: pd.DataFrame
    distillation_history: pd.DataFrame
    random_distillation_history: pd.DataFrame
    contact_sheet_images: int
    """Images in each block of the contact sheet (a parameter, not a catalog entry)."""

    @property
    def class_names(self) -> list[str]:
        """The names of the teacher's classes."""
        return self.class_weights["class_name"].tolist()


@dataclass(frozen=True)
class ReportFigure:
    """One figure of the report.

    Raises:
        ValueError: the caption is empty.
    """

    name: str
    """The catalog entry it is saved to, and its anchor on the page."""
    caption: str
    draw: Callable[[RunResults], Figure]
    kind: Literal["chart", "photos"] = "chart"
    """A dark page inverts the colors of a chart, never those of photos."""

    def __post_init__(self) -> None:
        if not self.caption.strip():
            raise ValueError(
                f"figure {self.name!r} has no caption: state what a reader should see in it"
            )


REPORT_FIGURES = (
    ReportFigure(
        name="score_histogram",
        caption="What the PU classifier says of every pool image, more like the positives to the right. "
        "The truth, where the pool knows it, is used here and never for the selection.",
        draw=lambda run: plot_score_histogram(
            run.pool_scores, run.manifest, run.pool_images, run.class_prior
        ),
    ),
    ReportFigure(
        name="contact_sheet",
        caption="The best should belong, the worst should not, and the borderline shows what the cut costs.",
        draw=lambda run: plot_contact_sheet(
            run.manifest,
            run.pool_scores,
            run.pool_images,
            run.contact_sheet_images,
            run.class_names,
        ),
        kind="photos",
    ),
    ReportFigure(
        name="per_class_accuracy_plot",
        caption="Test accuracy class by class: the further the student lies from its teacher, the more "
        "it lost there.",
        draw=lambda run: plot_per_class_accuracy(run.metrics, run.class_names),
    ),
    ReportFigure(
        name="distillation_curves",
        caption="Each student is watched on its own images, so the curves show how it settles; only the "
        "test images compare the two.",
        draw=lambda run: plot_distillation_history(
            run.distillation_history, run.random_distillation_history
        ),
    ),
    ReportFigure(
        name="pu_curves",
        caption="The negative part falls below zero when the classifier starts to overfit; ascent steps push it back.",
        draw=lambda run: plot_pu_history(run.pu_history),
    ),
    ReportFigure(
        name="class_weights_plot",
        caption="Classes that the selection brings in small numbers weigh more, within the stated clip.",
        draw=lambda run: plot_class_weights(run.class_weights),
    ),
)
"""In the order of the page."""
