"""Stage `random_baseline`: the same student from as many random pool images, to say what selection is worth."""

from pu_kd_pipeline.pipelines.random_baseline.pipeline import create_pipeline

__all__ = ["create_pipeline"]
