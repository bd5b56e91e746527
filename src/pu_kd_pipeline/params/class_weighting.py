"""The block `class_weighting`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from pu_kd_pipeline.params.base import SEEDS, Block

WeightingMode = Literal["none", "shrunk", "balanced", "adjusted", "paper"]
MODES: tuple[str, ...] = get_args(WeightingMode)
# Values of the key `mode` in earlier versions: now those of `paper.perturbation`.
FORMER_MODES = ("projected", "released")
_OPTION_BLOCKS = ("shrunk", "balanced", "adjusted", "paper")  # each read in the mode of its name
_CLIP = "bounds of a class weight before the weights are scaled"


def _checked_clip(clip: tuple[float, float]) -> tuple[float, float]:
    if not 0 < clip[0] <= 1 <= clip[1]:
        raise ValueError(f"clip must be [low, high] with 0 < low <= 1 <= high, got {list(clip)}")
    return clip


class ShrunkParams(Block):
    """Option block of `shrunk`: weights that are inverse to the root of smoothed counts."""

    smoothing: float = Field(
        ge=0,
        description="lambda: this many times the mean count of a class is added to every count",
    )
    clip: tuple[float, float] = Field(description=_CLIP)

    _check_clip = field_validator("clip")(_checked_clip)


class BalancedParams(Block):
    """Option block of `balanced`: the teacher's classes are drawn evenly."""

    max_factor: float = Field(
        ge=1, description="how many times as often an image of a rare class is drawn at most"
    )


class AdjustedParams(Block):
    """Option block of `adjusted`: logit adjustment of the student inside the loss."""

    strength: float = Field(
        ge=0, description="tau, of the log frequency of a class added to the student's logits"
    )
    smoothing: float = Field(ge=0, description="lambda, as in `shrunk`")


class PaperParams(Block):
    """Option block of `paper`: Eq. 7 and the set W of Eq. 9-10 of Xu et al. 2019."""

    clip: tuple[float, float] = Field(description=_CLIP)
    epsilon: float = Field(ge=0, description="largest change of a weight, absolute")
    perturbation: Literal["projected", "released"] = Field(
        description="projected: two-sided and projected onto the simplex; "
        "released: upward only, as in the authors' code"
    )
    mean_weight: Literal["classes", "samples"] = Field(
        "classes",
        description="what the weights have a mean of 1 over; classes: they sum to K, as in Eq. 7; "
        "samples: the images, so that the learning rate is that of plain distillation",
    )

    _check_clip = field_validator("clip")(_checked_clip)


class ClassWeightingParams(Block):
    """The block `class_weighting`: which classes count more, and the game around their weights."""

    moved_keys: ClassVar[Mapping[str, str]] = {
        "clip": "`paper.clip` (and `shrunk.clip`)",
        "epsilon": "`paper.epsilon` in the mode paper and `relative_epsilon` in the others",
    }

    seed: int = Field(ge=0, lt=SEEDS, description="of the perturbed weight vectors")
    mode: WeightingMode = Field(
        description="none: every image counts the same; shrunk: classes that are drawn rarely "
        "count up to twice as much; balanced: the classes of pool images are drawn evenly instead; "
        "adjusted: logit adjustment (Menon et al. 2021); paper: Eq. 7 of Xu et al. 2019"
    )
    n_vectors: int = Field(
        ge=1, description="perturbed weight vectors, in addition to the estimated one"
    )
    relative_epsilon: float = Field(
        ge=0,
        lt=1,
        description="largest change of a weight, as a share of it; 0: there is no game; the mode "
        "paper has paper.epsilon instead",
    )
    # Those of modes that are not chosen may be present: a comparison switches the mode.
    shrunk: ShrunkParams
    balanced: BalancedParams
    adjusted: AdjustedParams
    paper: PaperParams

    @field_validator("mode", mode="before")
    @classmethod
    def _mode_is_no_perturbation(cls, value: Any) -> Any:
        if value in FORMER_MODES:
            raise ValueError(
                f"this is now class_weighting.paper.perturbation: set that to {value}, and mode to "
                "paper"
            )
        return value

    def unread_keys(self) -> set[str]:
        """Return the keys that have no effect in the chosen mode."""
        unread = set(_OPTION_BLOCKS) - {self.mode}
        if self.mode == "paper":
            unread.add("relative_epsilon")
        return unread
