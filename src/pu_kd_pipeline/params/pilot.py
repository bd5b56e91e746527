"""The block `pilot`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare, Share
from pu_kd_pipeline.params.comparison import METHODS, ComparisonVariant

_SHORTEST = 10  # updates of a training that shows anything

Lengths = Annotated[
    tuple[Annotated[int, Field(ge=_SHORTEST)], ...] | None,
    Field(
        description="numbers of updates of the rounds, ascending; the sample is then limited by "
        "max_pool_images alone; null: those that fit into the time, so that another machine may "
        "have others"
    ),
]


class HalvingParams(Block):
    """How candidates are compared by short trainings (successive halving)."""

    key: ClassVar[str] = "pilot"  # of the block, for messages

    seed: int = Field(ge=0, lt=SEEDS, description="of the sample of the pool and of all trainings")
    minutes: float = Field(
        gt=0,
        le=10_000,
        description="the time that it may take, from the first image of the pool on; "
        "finishing what has been started may take a little longer",
    )
    max_pool_images: int = Field(
        ge=10, description="pool images at most: a random sample, which all candidates share"
    )
    teacher_share: OpenShare = Field(
        description="of the time, for the teacher's outputs: limits the sample for a slow teacher"
    )
    yardstick_share: OpenShare = Field(
        description="of the related images of the sample, which are measured on and not learned "
        "from; more than yardstick.max_share, because the sample is small"
    )
    n_rounds: int = Field(
        ge=1,
        le=6,
        description="each has half of the candidates of the one before, for about twice as many "
        "updates",
    )
    lengths: Lengths = None

    @model_validator(mode="after")
    def _lengths_fit_rounds(self) -> HalvingParams:
        if self.lengths is None:
            return self
        if len(self.lengths) != self.n_rounds:
            raise ValueError(
                f"lengths has {len(self.lengths)} numbers, and n_rounds is {self.n_rounds}: "
                "give one for each round"
            )
        if any(first >= second for first, second in pairwise(self.lengths)):
            raise ValueError(f"lengths must ascend, got {list(self.lengths)}")
        return self


class PilotParams(HalvingParams):
    """The block `pilot`: which choice of images leads, and what a full run will take."""

    least_gain: Share = Field(
        description="gain over random images and over the whole pool, as a share of images: where "
        "it is surely less, there is nothing to gain"
    )
    candidates: dict[str, ComparisonVariant | None] = Field(
        description="name -> variant, as in comparison.variants; null leaves one of conf/base out"
    )

    @property
    def chosen(self) -> dict[str, ComparisonVariant]:
        """The candidates that are not null."""
        return {name: variant for name, variant in self.candidates.items() if variant is not None}

    @model_validator(mode="after")
    def _candidates_can_be_compared(self) -> PilotParams:
        if not self.chosen:
            raise ValueError("candidates must name at least one")
        for name, variant in self.chosen.items():
            if name in CONTROLS or name == PRESENT:
                raise ValueError(
                    f"candidates: {name!r} is the name of a control, which every pilot has: rename "
                    "it, or remove it"
                )
            unread = [key for key in _UNREAD if getattr(variant, key)]
            if unread:
                raise ValueError(f"candidates.{name}: a pilot does not read {', '.join(unread)}")
            if not METHODS[variant.method].selects:
                raise ValueError(f"candidates.{name}: only the method `selection` has a pilot")
            if isinstance(variant.budget, str):
                raise ValueError(f"candidates.{name}: budget needs to be a number or null")
            if variant.objectives is not None and len(variant.objectives) != 1:
                raise ValueError(f"candidates.{name}: objectives must name one")
            if variant.rule in RULES and RULES[variant.rule].uses_truth:
                raise ValueError(
                    f"candidates.{name}: the rule {variant.rule!r} reads the truth, which a user "
                    "does not have; the pilot trains it as a reference by itself"
                )
        return self


# Keys of a variant of a comparison that have no meaning here.
_UNREAD = ("labeled_per_class", "sweep", "relatedness")

PRESENT = "present parameters"
"""Name of the candidate with the run's own parameters, where none of the others has them."""

RANDOM = "random"
WHOLE_POOL = "whole_pool"
ORACLE = "oracle"
CONTROLS = {
    RANDOM: ComparisonVariant(rule="random"),
    WHOLE_POOL: ComparisonVariant(rule="all"),
    ORACLE: ComparisonVariant(rule="oracle"),
}
"""What every candidate is compared with; the oracle only where the truth is known."""
