"""Stage `reporting`: figures, contact sheet and the page that says what the run found."""

from pu_kd_pipeline.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
