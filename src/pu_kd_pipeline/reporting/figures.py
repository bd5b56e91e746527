"""The figures of a run's report: one record per figure, from its catalog name to how it is drawn.

The outputs of the stage `reporting`, the order of the page and its captions follow from
`REPORT_FIGURES`. To add a figure, write its function and add a record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pu_kd_pipeline.reporting.class_figures import plot_class_weights, plot_per_class_accuracy
from pu_kd_pipeline.reporting.contact_sheet import plot_contact_sheet
from pu_kd_pipeline.reporting.selection_figures import plot_score_histogram
from pu_kd_pipeline.reporting.training_figures import plot_distillation_history, plot_pu_history
from pu_kd_pipeline.storage.manifest import CLASS_WEIGHTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pu_kd_pipeline.images.duplicates import Excluded
    from pu_kd_pipeline.images.store import ImageStore


@dataclass(frozen=True)
class RunResults:
    """What a run has saved and figures show; most fields are the catalog entries of that name."""

    metrics: Mapping[str, Any]
    class_prior: Mapping[str, Any]
    pool_scores: pd.DataFrame
    manifest: pd.DataFrame
    pool_images: ImageStore
    labeled_images: ImageStore
    test_images: ImageStore
    test_predictions: pd.DataFrame
    certificate: Mapping[str, Any]
    pu_history: pd.DataFrame
    class_weights: pd.DataFrame
    distillation_history: pd.DataFrame
    random_distillation_history: pd.DataFrame
    excluded: Excluded
    """The images that no manifest may hold, by `duplicates` and `yardstick`."""
    contact_sheet_images: int
    """Images in each block of the contact sheet (a parameter, not a catalog entry)."""

    @property
    def reads_class_weights(self) -> bool:
        """Whether the student's objective reads them; metrics of old versions do not state it."""
        selection = self.metrics.get("selection") or {}
        return selection.get(CLASS_WEIGHTS, {}) is not None

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
    """On a dark page the colors of a chart are inverted, those of photos are not."""

    def __post_init__(self) -> None:
        # Checked when the record is made, so that it fails before a run and not at its end.
        if not self.caption.strip():
            raise ValueError(
                f"figure {self.name!r} has no caption: describe what a reader should see in it"
            )


# A name that ends in `_plot` or `_curves` needs no entry in the catalog: a pattern there covers it.
REPORT_FIGURES = (
    ReportFigure(
        name="score_histogram",
        caption="PU scores of all pool images, more like the positives to the right. "
        "The truth, where it is known, is shown here and never used for the selection.",
        draw=lambda run: plot_score_histogram(
            run.pool_scores, run.manifest, run.pool_images, run.class_prior
        ),
    ),
    ReportFigure(
        name="contact_sheet",
        caption="The best images should show the teacher's classes and the worst should not; "
        "the borderline images show which ones the cut loses or lets in.",
        draw=lambda run: plot_contact_sheet(
            run.manifest,
            run.pool_scores,
            run.pool_images,
            run.contact_sheet_images,
            run.class_names,
            run.excluded.all_pool,
        ),
        # Inverted, as charts are on a dark page, photos could not be judged.
        kind="photos",
    ),
    ReportFigure(
        name="per_class_accuracy_plot",
        caption="Test accuracy per class: the farther a student lies below its teacher, "
        "the more accuracy it lost in that class.",
        draw=lambda run: plot_per_class_accuracy(run.metrics, run.class_names),
    ),
    ReportFigure(
        name="distillation_curves",
        caption="Each student is measured on its own images, so the curves show how it converges; "
        "only the test images compare the two.",
        draw=lambda run: plot_distillation_history(
            run.distillation_history, run.random_distillation_history
        ),
    ),
    ReportFigure(
        name="pu_curves",
        caption="The negative part of the risk falls below zero when the classifier starts "
        "to overfit; ascent steps push it back.",
        draw=lambda run: plot_pu_history(run.pu_history),
    ),
    ReportFigure(
        name="class_weights_plot",
        caption="How much of each class the teacher sees in the images that are weighted, and how "
        "much an image of the class counts in the loss of robust_kd (class_weighting.mode).",
        draw=lambda run: plot_class_weights(run.class_weights, is_read=run.reads_class_weights),
    ),
)
"""All figures, in the order of the page."""
