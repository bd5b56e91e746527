"""Stage `pool_scoring`: every pool image gets its PU score."""

from pu_kd_pipeline.pipelines.pool_scoring.pipeline import create_pipeline

__all__ = ["create_pipeline"]
