"""The block `class_weighting`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pu_kd_pipeline.params.base import SEEDS, Block


class ClassWeightingParams(Block):
    """The block `class_weighting` (Eq. 7 and the set W of Eq. 9-10)."""

    seed: int = Field(ge=0, lt=SEEDS)
    clip: tuple[float, float] = Field(
        description="bounds of a class weight before the weights are rescaled to sum to K"
    )
    n_vectors: int = Field(
        ge=1, description="perturbed weight vectors, in addition to the estimated one"
    )
    epsilon: float = Field(ge=0, description="largest change of a weight")
    mode: Literal["projected", "released"] = Field(
        description="projected: two-sided and projected onto the simplex; "
        "released: upward only, as in the authors' code"
    )

    @model_validator(mode="after")
    def _clip_is_an_interval(self) -> ClassWeightingParams:
        if not 0 < self.clip[0] <= 1 <= self.clip[1]:
            raise ValueError(
                f"clip must be [low, high] with 0 < low <= 1 <= high, got {list(self.clip)}"
            )
        return self
