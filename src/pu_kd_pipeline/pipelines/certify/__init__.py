"""Stage `certify`: fails where a student's certificate does not keep the limits of a user."""

from pu_kd_pipeline.pipelines.certify.pipeline import create_pipeline

__all__ = ["create_pipeline"]
