"""Stage `pilot`: what choosing images can gain, with which choice, and at what cost."""

from pu_kd_pipeline.pipelines.pilot.pipeline import create_pipeline

__all__ = ["create_pipeline"]
