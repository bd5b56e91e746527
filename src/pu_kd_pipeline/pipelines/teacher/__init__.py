"""Stage `teacher`: load a trained network, or train one where an experiment needs it."""

from pu_kd_pipeline.pipelines.teacher.pipeline import create_pipeline

__all__ = ["create_pipeline"]
