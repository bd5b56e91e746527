"""Stage `pool_scoring`: a PU score for every pool image."""

from pu_kd_pipeline.pipelines.pool_scoring.pipeline import create_pipeline

__all__ = ["create_pipeline"]
