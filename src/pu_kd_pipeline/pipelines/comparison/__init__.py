"""Stage `comparison`: many students of one teacher, compared. It is not part of `full`."""

from pu_kd_pipeline.pipelines.comparison.pipeline import create_pipeline

__all__ = ["create_pipeline"]
