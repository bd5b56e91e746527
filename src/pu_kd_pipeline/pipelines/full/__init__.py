"""Pipeline `full`: all stages, from images to report."""

from pu_kd_pipeline.pipelines.full.pipeline import create_pipeline

__all__ = ["create_pipeline"]
