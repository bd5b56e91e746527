"""Stage `predict`: the student's classes of image files."""

from pu_kd_pipeline.pipelines.predict.pipeline import create_pipeline

__all__ = ["create_pipeline"]
