"""Stage `relatedness`: how often each pool image is drawn where no original image is left. It is no part of `full`."""

from pu_kd_pipeline.pipelines.relatedness.pipeline import create_pipeline

__all__ = ["create_pipeline"]
