"""The blocks of distillation: the student, its objective and how it learns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare, Options, Share
from pu_kd_pipeline.params.compute import (
    AugmentationParams,
    ComputeParams,
    OptimizerParams,
    TrainingWorkersParams,
)


class NoiseMatrixParams(Block):
    """Option block of `noisy_kd`: the matrix of label noise (DFND, Chen et al. 2021)."""

    diagonal: OpenShare = Field(
        description="share of the teacher's classes that are right: its accuracy"
    )
    learns_diagonal: bool = Field(
        description="false: the diagonal is held, as in the released code"
    )
    learning_rate: float = Field(gt=0, description="of the matrix's own Adam")
    pseudo_label_weight: float = Field(
        ge=0, description="of the noisy cross-entropy with the teacher's classes"
    )


class LatentParams(Block):
    """Option block of `latent` (S3): the weights of its terms."""

    logits_weight: float = Field(ge=0, description="of the mean squared error of centered logits")
    penultimate_weight: float = Field(
        ge=0, description="of that of unit penultimate features, summed over them"
    )
    kl_weight: float = Field(
        ge=0, description="of the KL divergence at distillation.temperature; 0: none"
    )
    shared_head: bool = Field(
        description="the student uses the teacher's last layer, frozen, through an adapter"
    )

    @model_validator(mode="after")
    def _something_is_learned(self) -> LatentParams:
        if not self.logits_weight + self.penultimate_weight + self.kl_weight:
            raise ValueError(
                "one of logits_weight, penultimate_weight and kl_weight must be above 0"
            )
        return self


class AttentionParams(Block):
    """Option block of `attention` and `pu_critic`: matched layers, and weights of the terms."""

    n_taps: int = Field(ge=1, description="the last taps of both networks that are matched")
    weight: float = Field(
        ge=0, description="beta of attention transfer (Zagoruyko & Komodakis 2017)"
    )
    label_weight: Share = Field(
        description="1 - alpha: cross-entropy with labels, which every image must then have"
    )


class CriticParams(Block):
    """Option block of `pu_critic` (S0): the critic between teacher and student features."""

    mode: Literal["clamp", "ascent", "gan"] = Field(
        description="what happens where its negative risk falls below zero: it counts as zero, or "
        "nnPU's step back; gan: a plain critic that takes all student features for negative, the "
        "control"
    )
    class_prior: tuple[OpenShare, OpenShare] = Field(
        description="share of passing student features, first and last"
    )
    weight: float = Field(ge=0, description="lambda, of the student's loss under the critic")
    ramp_updates: int = Field(ge=0, description="updates over which lambda rises from 0")
    lipschitz: float = Field(
        gt=0, description="scale of the critic's features: how steep its scores can be"
    )
    learning_rate: float = Field(gt=0, description="of the critic's Adam")


class _Objective(BaseModel):
    """An objective and its option blocks.

    No `Block`: pydantic allows no validator before a discriminator, and the option blocks have been
    checked as keys of `distillation`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class KDParams(_Objective):
    """The objective `kd`: the teacher's softened probabilities (Hinton et al. 2015)."""

    name: Literal["kd"]


class RobustKDParams(_Objective):
    """The objective `robust_kd`: `kd` under the worst of many class weights (Xu et al. 2019)."""

    name: Literal["robust_kd"]


class StandardizedKDParams(_Objective):
    """The objective `standardized_kd`: `kd` of standardized logits (Sun et al. 2024)."""

    name: Literal["standardized_kd"]


class LogitMSEParams(_Objective):
    """The objective `logit_mse`: the squared error of the logits (Kim et al. 2021)."""

    name: Literal["logit_mse"]


class NoisyKDParams(_Objective):
    """The objective `noisy_kd`: `kd`, and noisy pseudo-labels (DFND, Chen et al. 2021)."""

    name: Literal["noisy_kd"]
    noise_matrix: NoiseMatrixParams


class LatentKDParams(_Objective):
    """The objective `latent`: centered logits and penultimate features (S3, a reconstruction)."""

    name: Literal["latent"]
    latent: LatentParams


class AttentionKDParams(_Objective):
    """The objective `attention`: `kd`, and attention transfer (Zagoruyko & Komodakis 2017)."""

    name: Literal["attention"]
    attention: AttentionParams


class PUCriticParams(_Objective):
    """The objective `pu_critic`: `attention`, and a critic between the features (S0)."""

    name: Literal["pu_critic"]
    attention: AttentionParams
    critic: CriticParams


ObjectiveParams = Annotated[
    KDParams
    | RobustKDParams
    | StandardizedKDParams
    | LogitMSEParams
    | NoisyKDParams
    | LatentKDParams
    | AttentionKDParams
    | PUCriticParams,
    Field(discriminator="name"),
]
_OBJECTIVE_PARAMS: TypeAdapter[ObjectiveParams] = TypeAdapter(ObjectiveParams)


def _option_blocks_by_objective() -> dict[str, tuple[str, ...]]:
    """Return for each member of `ObjectiveParams` the keys of `distillation` that it reads."""
    union, _ = get_args(ObjectiveParams)
    blocks = {}
    for params in get_args(union):
        # `name: Literal["kd"]` has exactly one value.
        [name] = get_args(params.model_fields["name"].annotation)
        fields = list(params.model_fields)
        fields.remove("name")
        blocks[name] = tuple(fields)
    return blocks


# Derived from the union, so that an objective is declared once, by its class above.
OPTION_BLOCKS = _option_blocks_by_objective()

# A type checker cannot read a Literal that is computed; pydantic can, and lists it in its messages.
if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[tuple(OPTION_BLOCKS)]


class FinalPhaseParams(Block):
    """The last updates of a training, on the images that matter most."""

    share: float = Field(0.0, ge=0, lt=1, description="of the updates; 0: there is no final phase")
    images: Literal["labeled", "labeled_and_related"] = Field(
        "labeled",
        description="labeled: the labeled images alone; labeled_and_related: and the pool images "
        "that the manifest's column `reason` calls related",
    )


class DistillationParams(Block):
    """The block `distillation`: the student and how it learns."""

    seed: int = Field(
        ge=0, lt=SEEDS, description="of the initial weights, the batches and the views"
    )
    student_architecture: str = Field(
        description="an architecture of this package or of torchvision, or module:function of "
        "your own factory"
    )
    student_options: Options = Field(description="further keyword arguments of the architecture")
    objective: ObjectiveName = Field(description="what the student matches: docs/methods.md")
    # Option blocks of the objectives. Those of objectives that are not chosen may be present: a
    # comparison switches the objective and keeps the other keys.
    noise_matrix: NoiseMatrixParams | None = None
    latent: LatentParams | None = None
    attention: AttentionParams | None = None
    critic: CriticParams | None = None
    temperature: float = Field(
        gt=0, description="divides the logits of teacher and student; above 1: softer probabilities"
    )
    n_updates: int = Field(gt=0, description="equal for every student that is compared")
    record_every: int = Field(gt=0, description="updates per record of the history")
    batch_size: int = Field(gt=1, description="images per update")
    labeled_share: OpenShare | None = Field(
        None,
        description="share of labeled images in every batch, on average; null: as the manifest "
        "gives, which falls as more pool images are selected",
    )
    keep: Literal["last", "best"] = Field(
        description="best: the record closest to the teacher on the yardstick, by KL divergence"
    )
    teacher_cache: Literal["off", "exact", "views"] = Field(
        description="off: ask the teacher at every step; exact: once for every view; views: once "
        "for `cached_views` of each image, and draw from these; both only where that is less work"
    )
    cached_views: int = Field(gt=0, description="of each image, where teacher_cache is views")
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    mixing: Literal["none", "cutmix", "mixup"] = Field(
        "none",
        description="mixes the images of a batch, the same ones for teacher and student; cutmix: "
        "a box comes from another image (Yun et al. 2019); mixup: weighted means of two images "
        "(Zhang et al. 2018). For long trainings on few images; the teacher runs at every step",
    )
    mixing_alpha: float = Field(
        1.0, gt=0, description="the image's own share is drawn from Beta(alpha, alpha)"
    )
    mixing_share: float = Field(1.0, gt=0, le=1, description="share of the batches that are mixed")
    final_phase: FinalPhaseParams = Field(
        default_factory=FinalPhaseParams,
        description="last updates on the images that matter most, when the pool is broad",
    )
    weight_averaging: Literal["none", "final_phase", "ema"] = Field(
        "none",
        description="final_phase: the mean of the student's weights over the final phase "
        "(Izmailov et al. 2018), for a learning rate that does not fall to zero; ema: an "
        "exponential moving average over the training",
    )
    ema_decay: float = Field(
        0.999, gt=0, lt=1, description="of the moving average, which covers 1 / (1 - decay) updates"
    )
    compute: ComputeParams
    training_workers: TrainingWorkersParams = Field(
        default_factory=TrainingWorkersParams,
        description="processes that train the student together",
    )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillationParams:
        missing = [block for block in OPTION_BLOCKS[self.objective] if getattr(self, block) is None]
        if missing:
            raise ValueError(
                f"objective {self.objective!r} needs {' and '.join(missing)} next to it"
            )
        if self.weight_averaging == "final_phase" and self.final_phase.share == 0:
            raise ValueError("weight_averaging 'final_phase' needs a final_phase.share above 0")
        self._check_labels_of_mixed_images()
        self.training_workers.check_divides(batch_size=self.batch_size)
        return self

    def _check_labels_of_mixed_images(self) -> None:
        reads_labels = "attention" in OPTION_BLOCKS[self.objective] and (
            self.attention is not None and self.attention.label_weight > 0
        )
        if self.mixing != "none" and reads_labels:
            raise ValueError(
                f"mixing {self.mixing!r} makes images without a label of their own, and "
                "attention.label_weight learns labels: set it to 0, or mixing to none"
            )

    @property
    def mixed_share(self) -> float:
        """Share of the batches that are mixed; 0 without mixing."""
        if self.mixing == "none":
            return 0.0
        return self.mixing_share

    # Not a cached property: `model_copy` would carry the cached value to another objective.
    @property
    def objective_params(self) -> ObjectiveParams:
        """The parameters of the chosen objective alone.

        Raises:
            ValueError: the objective is not known, or one of its option blocks is missing, which
                only `model_copy` can bring about.
        """
        values = {"name": self.objective}
        for block in OPTION_BLOCKS.get(self.objective, ()):
            values[block] = getattr(self, block)
        return _OBJECTIVE_PARAMS.validate_python(values)

    def unread_keys(self) -> set[str]:
        """Return the keys that have no effect.

        These are the option blocks of other objectives, and options of what is switched off.
        """
        all_blocks: set[str] = set()
        for blocks in OPTION_BLOCKS.values():
            all_blocks.update(blocks)
        unread = all_blocks.difference(OPTION_BLOCKS[self.objective])
        if self.mixing == "none":
            unread |= {"mixing_alpha", "mixing_share"}
        if self.weight_averaging != "ema":
            unread.add("ema_decay")
        return unread


def check_option_blocks(
    option_blocks: Mapping[str, tuple[str, ...]], keys: Collection[str]
) -> None:
    """Check that `distillation` has a key for every option block that an objective reads.

    Args:
        option_blocks: objective -> the option blocks that it reads.
        keys: keys of the block `distillation`.

    Raises:
        TypeError: a key is missing.
    """
    for objective, blocks in option_blocks.items():
        for block in blocks:
            if block not in keys:
                raise TypeError(
                    f"the objective {objective!r} reads the option block {block!r}, which is not a "
                    "field of DistillationParams: add it there (params/distillation.py)"
                )


check_option_blocks(OPTION_BLOCKS, DistillationParams.model_fields)
