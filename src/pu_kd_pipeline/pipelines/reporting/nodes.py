"""The node of the stage `reporting`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.params.feature_extraction import FeatureExtractionParams
from pu_kd_pipeline.params.pool_scoring import PoolScoringParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.random_baseline import RandomBaselineParams
from pu_kd_pipeline.params.reporting import ReportingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import (
    TeacherCheckParams,
    TeacherParams,
    TeacherTrainingParams,
)
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def report_run(
    metrics: dict[str, Any],
    ingestion_report: dict[str, Any],
    class_prior: dict[str, Any],
    pool_scores: ShardedTable,
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    labeled_images: ImageStore,
    test_images: ImageStore,
    test_predictions: pd.DataFrame,
    certificate: dict[str, Any],
    student: Model,
    duplicates: pd.DataFrame,
    yardstick_images: pd.DataFrame,
    pu_history: pd.DataFrame,
    class_weights: pd.DataFrame,
    distillation_history: pd.DataFrame,
    random_distillation_history: pd.DataFrame,
    data_ingestion: DataIngestionParams,
    teacher: TeacherParams,
    teacher_check: TeacherCheckParams,
    teacher_training: TeacherTrainingParams,
    feature_extraction: FeatureExtractionParams,
    yardstick: YardstickParams,
    pu_training: PUTrainingParams,
    pool_scoring: PoolScoringParams,
    subset_materialization: SubsetParams,
    class_weighting: ClassWeightingParams,
    distillation: DistillationParams,
    random_baseline: RandomBaselineParams,
    evaluation: EvaluationParams,
    params: ReportingParams,
) -> dict[str, Any]:
    """Return the figures by catalog name, and under `report` the HTML page that shows them.

    The page lists the blocks of parameters that the run used. They are inputs one by one: all
    parameters together differ between two commands that run the same.
    """
    from pu_kd_pipeline.images.duplicates import excluded_images
    from pu_kd_pipeline.reporting.figures import REPORT_FIGURES, RunResults
    from pu_kd_pipeline.reporting.html import render_report
    from pu_kd_pipeline.reporting.sections.page import sections_of

    results = RunResults(
        metrics=metrics,
        class_prior=class_prior,
        pool_scores=pool_scores.to_pandas(),
        manifest=manifest,
        pool_images=pool_images,
        labeled_images=labeled_images,
        test_images=test_images,
        test_predictions=test_predictions,
        certificate=certificate,
        excluded=excluded_images(duplicates, subset_materialization, yardstick_images),
        pu_history=pu_history,
        class_weights=class_weights,
        distillation_history=distillation_history,
        random_distillation_history=random_distillation_history,
        contact_sheet_images=params.contact_sheet_images,
    )
    # One node for all: a saved PNG cannot be loaded as a figure again, so that a second node
    # that renders the page would have to draw each figure a second time.
    plots = {figure.name: figure.draw(results) for figure in REPORT_FIGURES}
    blocks = {
        "data_ingestion": data_ingestion,
        "teacher": teacher,
        "teacher_check": teacher_check,
        "teacher_training": teacher_training,
        "feature_extraction": feature_extraction,
        "yardstick": yardstick,
        "pu_training": pu_training,
        "pool_scoring": pool_scoring,
        "subset_materialization": subset_materialization,
        "class_weighting": class_weighting,
        "distillation": distillation,
        "random_baseline": random_baseline,
        "evaluation": evaluation,
        "reporting": params,
    }
    facts = {str(name): value for name, value in manifest.attrs.items()}
    sections = sections_of(results, student, blocks)
    page = render_report(
        params.title, metrics, ingestion_report, class_prior, facts, plots, blocks, sections
    )
    return {**plots, "report": page}
