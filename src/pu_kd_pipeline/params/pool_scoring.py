"""The block `pool_scoring`."""

from __future__ import annotations

from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.compute import ComputeParams


class PoolScoringParams(Block):
    """The block `pool_scoring`."""

    compute: ComputeParams
