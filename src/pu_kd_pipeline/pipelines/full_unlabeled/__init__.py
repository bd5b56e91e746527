"""Pipeline `full_unlabeled`: all stages of a student without any original image."""

from pu_kd_pipeline.pipelines.full_unlabeled.pipeline import create_pipeline

__all__ = ["create_pipeline"]
