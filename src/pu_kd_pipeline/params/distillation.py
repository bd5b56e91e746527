"""The blocks of distillation: the student, its objective and how it learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare, Options, Share
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams


class NoiseMatrixParams(Block):
    """The objective `noisy_kd`: the matrix of wrong pseudo-labels (DFND, Chen et al. 2021)."""

    diagonal: OpenShare = Field(
        description="share of the teacher's classes that are right: its accuracy"
    )
    learns_diagonal: bool = Field(
        description="false: the diagonal is held, as in the released code"
    )
    learning_rate: float = Field(gt=0, description="of the matrix's own Adam")
    pseudo_label_weight: float = Field(ge=0)


class LatentParams(Block):
    """The objective `latent` (S3): the weights of its terms."""

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
    """The objectives `attention` and `pu_critic`: where they look, and what beside the teacher's logits counts."""

    n_taps: int = Field(ge=1, description="the last taps of both networks that are matched")
    weight: float = Field(
        ge=0, description="beta of attention transfer (Zagoruyko & Komodakis 2017)"
    )
    label_weight: Share = Field(
        description="1 - alpha: cross-entropy with labels, which every image must then have"
    )


class CriticParams(Block):
    """The objective `pu_critic` (S0): the critic between teacher and student features."""

    mode: Literal["clamp", "ascent", "gan"] = Field(
        description="what happens where its negative risk falls below zero: it counts as zero, or nnPU's step back; "
        "gan: a plain critic that takes all student features for negative, the control"
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


# Which blocks inside of `distillation` an objective reads beside what all of them read.
OBJECTIVE_BLOCKS = {
    "kd": (),
    "robust_kd": (),
    "noisy_kd": ("noise_matrix",),
    "latent": ("latent",),
    "attention": ("attention",),
    "pu_critic": ("attention", "critic"),
}


class DistillationParams(Block):
    """The block `distillation`: the student and how it learns."""

    seed: int = Field(ge=0, lt=SEEDS)
    student_architecture: str
    student_options: Options = Field(description="further keyword arguments of the architecture")
    objective: Literal["kd", "robust_kd", "noisy_kd", "latent", "attention", "pu_critic"]
    noise_matrix: NoiseMatrixParams | None = None
    latent: LatentParams | None = None
    attention: AttentionParams | None = None
    critic: CriticParams | None = None
    temperature: float = Field(gt=0)
    n_updates: int = Field(gt=0, description="equal for every student that is compared")
    record_every: int = Field(gt=0, description="updates per record of the history")
    batch_size: int = Field(gt=1)
    held_out_share: Annotated[float, Field(ge=0, le=0.5)] = Field(
        description="share of the manifest kept out of training, to watch the agreement with the teacher"
    )
    keep: Literal["last", "best"] = Field(
        description="best: the record with the highest held-out agreement"
    )
    teacher_cache: Literal["off", "exact", "views"] = Field(
        description="off: ask the teacher at every step; exact: once for every view; views: once for `cached_views` of "
        "each image, and draw from these; both only where that is less work"
    )
    cached_views: int = Field(gt=0, description="of each image, where teacher_cache is views")
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    compute: ComputeParams

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillationParams:
        if missing := [
            name for name in OBJECTIVE_BLOCKS[self.objective] if getattr(self, name) is None
        ]:
            raise ValueError(
                f"objective {self.objective!r} needs {' and '.join(missing)} beside it"
            )
        if self.keep == "best" and self.held_out_share == 0:
            raise ValueError("keep 'best' needs a held_out_share above 0")
        return self
