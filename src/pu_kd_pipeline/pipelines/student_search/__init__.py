"""Stage `student_search`: the best student that a limit of its cost allows."""

from pu_kd_pipeline.pipelines.student_search.pipeline import create_pipeline

__all__ = ["create_pipeline"]
