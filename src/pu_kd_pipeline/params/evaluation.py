"""The block `evaluation`."""

from __future__ import annotations

from pydantic import Field

from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.compute import ComputeParams


class EvaluationParams(Block):
    """The block `evaluation`: the only use of the test images."""

    latency_repeats: int = Field(
        gt=0, description="single-image forward passes; the median is reported"
    )
    compute: ComputeParams
