"""The parameters of conf/ as Kedro reads them, and the types of their blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pu_kd_pipeline.params.certificate import CertificateParams
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.params.export import ExportParams
from pu_kd_pipeline.params.feature_extraction import FeatureExtractionParams
from pu_kd_pipeline.params.pilot import PilotParams
from pu_kd_pipeline.params.pool_audit import PoolAuditParams
from pu_kd_pipeline.params.pool_scoring import PoolScoringParams
from pu_kd_pipeline.params.predict import PredictParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.random_baseline import RandomBaselineParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.reporting import ReportingParams
from pu_kd_pipeline.params.student_search import StudentSearchParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.params.yardstick import YardstickParams

BLOCKS: dict[str, type[BaseModel]] = {
    "data_ingestion": DataIngestionParams,
    "teacher": TeacherParams,
    "teacher_training": TeacherTrainingParams,
    "engine": EngineParams,
    "feature_extraction": FeatureExtractionParams,
    "yardstick": YardstickParams,
    "relatedness": RelatednessParams,
    "unlabeled_distillation": DistillationParams,
    "critic_distillation": DistillationParams,
    "pu_training": PUTrainingParams,
    "pool_scoring": PoolScoringParams,
    "subset_materialization": SubsetParams,
    "class_weighting": ClassWeightingParams,
    "distillation": DistillationParams,
    "random_baseline": RandomBaselineParams,
    "certificate": CertificateParams,
    "export": ExportParams,
    "predict": PredictParams,
    "pool_audit": PoolAuditParams,
    "evaluation": EvaluationParams,
    "reporting": ReportingParams,
    "pilot": PilotParams,
    "student_search": StudentSearchParams,
}


def kedro_parameters(
    environment: str, folder: Path, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the parameters that Kedro reads in an environment, with the product's settings."""
    # Importing the settings imports Kedro, which most tests do not need.
    from pu_kd_pipeline.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

    arguments: Any = CONFIG_LOADER_ARGS
    loader = CONFIG_LOADER_CLASS(
        str(folder), env=environment, runtime_params=dict(given or {}), **arguments
    )
    return dict(loader["parameters"])
