"""Stage `random_baseline`: the control, the same student from as many random pool images."""

from pu_kd_pipeline.pipelines.random_baseline.pipeline import create_pipeline

__all__ = ["create_pipeline"]
