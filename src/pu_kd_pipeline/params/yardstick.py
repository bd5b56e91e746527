"""The block `yardstick`."""

from __future__ import annotations

from pydantic import Field

from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare, Share


class YardstickParams(Block):
    """The block `yardstick`: the images that every student is measured on, and none learns from."""

    seed: int = Field(
        ge=0, lt=SEEDS, description="of the draws; apart from the run's, so that runs share it"
    )
    n_images: int = Field(
        ge=0,
        description="pool images at most; 0: no yardstick at all, and nothing is measured",
    )
    uniform_share: Share = Field(
        description="of these images, drawn uniformly from the pool; the others are related ones"
    )
    max_share: OpenShare = Field(
        description="most of the pool, and of the images of a class that look most related"
    )
    labeled_share: Share = Field(description="of the labeled images of each class; 0: none")
    min_labeled_per_class: int = Field(
        gt=0, description="a class with fewer labeled images keeps all of them for the students"
    )
