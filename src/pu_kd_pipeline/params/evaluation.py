"""The block `evaluation`."""

from __future__ import annotations

from pydantic import Field

from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.compute import ComputeParams


class EvaluationParams(Block):
    """The block `evaluation`: the only use of the test images."""

    latency_repeats: int = Field(
        gt=0,
        description="forward passes of one image by each network, which take turns in blocks; "
        "the fastest block is reported",
    )
    compute: ComputeParams
