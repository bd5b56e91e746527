"""The block `feature_extraction`."""

from __future__ import annotations

from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.compute import ComputeParams


class FeatureExtractionParams(Block):
    """The block `feature_extraction`: one backbone pass over every image."""

    compute: ComputeParams
