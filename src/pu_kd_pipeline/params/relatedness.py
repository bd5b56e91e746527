"""The block `relatedness`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pu_kd_pipeline.params.base import SEEDS, Block, Share
from pu_kd_pipeline.params.compute import ComputeParams


class RelatednessParams(Block):
    """The block `relatedness`: what the teacher alone says of the pool, and how often each image is drawn (S3)."""

    seed: int = Field(
        ge=0, lt=SEEDS, description="of the noise that the indicators are calibrated on"
    )
    n_noise_images: int = Field(gt=0, description="images of uniform noise; 10,000 in the paper")
    clip: float = Field(
        gt=0, description="most standard deviations of noise that an indicator adds to the sum"
    )
    sampling: Literal["preferential", "uniform"] = Field(
        description="uniform: every image alike, the control"
    )
    temperature: float = Field(
        gt=0, description="of the exponential in the z-score of the sum; large samples evenly"
    )
    floor: Share = Field(
        description="share of the draws that is even, so that no image is excluded"
    )
    compute: ComputeParams
