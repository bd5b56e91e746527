"""The block `relatedness`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pu_kd_pipeline.params.base import SEEDS, Block, Share
from pu_kd_pipeline.params.compute import ComputeParams


class RelatednessParams(Block):
    """The block `relatedness`: teacher-only scores of the pool, and sampling by them (S3)."""

    seed: int = Field(
        ge=0, lt=SEEDS, description="seed of the noise that the indicators are calibrated on"
    )
    n_noise_images: int = Field(gt=0, description="images of uniform noise; 10,000 in the paper")
    clip: float = Field(
        gt=0, description="limit of an indicator in the sum, in standard deviations of noise"
    )
    sampling: Literal["preferential", "uniform"] = Field(
        description="uniform: the control, which draws every image equally often"
    )
    temperature: float = Field(
        gt=0, description="divides the z-score of the sum in the exponent; large: nearly uniform"
    )
    floor: Share = Field(
        description="share of the draws that is uniform, so that no image is excluded"
    )
    compute: ComputeParams
