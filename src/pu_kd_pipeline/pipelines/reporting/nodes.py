"""What the stage `reporting` does."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.reporting import ReportingParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def report_run(
    metrics: dict[str, Any],
    ingestion_report: dict[str, Any],
    class_prior: dict[str, Any],
    pool_scores: ShardedTable,
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    pu_history: pd.DataFrame,
    class_weights: pd.DataFrame,
    distillation_history: pd.DataFrame,
    random_distillation_history: pd.DataFrame,
    parameters: dict[str, Any],
    params: ReportingParams,
) -> dict[str, Any]:
    """Return the figures by catalog name, and under `report` the HTML page that shows them.

    One node, because a saved picture cannot be loaded as a figure again: so each is drawn once.
    """
    from pu_kd_pipeline.reporting.class_figures import plot_class_weights, plot_per_class_accuracy
    from pu_kd_pipeline.reporting.html import render_report
    from pu_kd_pipeline.reporting.selection_figures import plot_contact_sheet, plot_score_histogram
    from pu_kd_pipeline.reporting.training_figures import plot_distillation_history, plot_pu_history

    scores, class_names = pool_scores.to_pandas(), class_weights["class_name"].tolist()
    plots = {
        "score_histogram": plot_score_histogram(scores, manifest, pool_images, class_prior),
        "contact_sheet": plot_contact_sheet(
            manifest, scores, pool_images, params.contact_sheet_images, class_names
        ),
        "per_class_accuracy_plot": plot_per_class_accuracy(metrics, class_names),
        "distillation_curves": plot_distillation_history(
            distillation_history, random_distillation_history
        ),
        "pu_curves": plot_pu_history(pu_history),
        "class_weights_plot": plot_class_weights(class_weights),
    }
    facts = {str(name): value for name, value in manifest.attrs.items()}
    page = render_report(
        params.title, metrics, ingestion_report, class_prior, facts, plots, parameters
    )
    return {**plots, "report": page}
