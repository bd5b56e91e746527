"""Stage `reporting`: the figures of a run, and the HTML page that reports it."""

from pu_kd_pipeline.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
