"""Stage `relatedness`: sampling weights of the pool without original images; not in `full`."""

from pu_kd_pipeline.pipelines.relatedness.pipeline import create_pipeline

__all__ = ["create_pipeline"]
