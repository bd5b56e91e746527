"""The block `random_baseline`."""

from __future__ import annotations

from pydantic import Field

from pu_kd_pipeline.params.base import Block


class RandomBaselineParams(Block):
    """The block `random_baseline`: which controls are trained next to the student."""

    whole_pool: bool = Field(
        False,
        description="also distill a student from the whole pool, with as many updates and the same "
        "share of labeled images per batch",
    )
