"""The stage that turns image sources into image stores, decoding every image once."""

from pu_kd_pipeline.pipelines.data_ingestion.pipeline import create_pipeline

__all__ = ["create_pipeline"]
