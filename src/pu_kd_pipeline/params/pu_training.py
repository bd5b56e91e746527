"""The block `pu_training`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pu_kd_pipeline.learning.class_prior.methods import METHODS, describe_methods
from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare
from pu_kd_pipeline.params.compute import (
    AugmentationParams,
    ComputeParams,
    OptimizerParams,
    TrainingWorkersParams,
)
from pu_kd_pipeline.params.names import one_of

AUDIT = "audit"  # a class prior by the stage `pool_audit`, as a parameter and as a method


class ClassPriorParams(Block):
    """How the class prior is estimated where it is not given."""

    method: Annotated[str, one_of(METHODS)] = Field(description=describe_methods())
    n_folds: int = Field(
        ge=2,
        description="cross-fitting folds; each held-out fold is scored by the others' classifier",
    )
    epochs: int = Field(
        gt=0, description="epochs of the classifier that separates positives from unlabeled"
    )
    n_bootstrap: int = Field(
        ge=20, description="resamples of the scores, for the interval of the class prior"
    )
    level: OpenShare = Field(description="confidence level of the interval")


class PUTrainingParams(Block):
    """The block `pu_training`: the class prior and the PU classifier (Xu et al. 2019, Eq. 3-6)."""

    seed: int = Field(ge=0, lt=SEEDS, description="of the folds, the batches and the bootstrap")
    class_prior: OpenShare | Literal["audit"] | None = Field(
        description="share of positives in the pool; audit: by a person's answers, from the stage "
        "`pool_audit`; null: estimated"
    )
    prior_estimation: ClassPriorParams
    estimator: Literal["nnpu", "upu", "cvir"] = Field(
        description="cvir: logistic loss that ignores the class_prior of the unlabeled that score "
        "highest"
    )
    beta: float = Field(ge=0, description="nnPU tolerates a negative risk down to -beta")
    gamma: Annotated[float, Field(ge=0, le=1)] = Field(
        description="step size of nnPU's ascent branch"
    )
    backbone: Literal["frozen", "full"] = Field(
        description="frozen: a head on cached descriptors; full: end to end"
    )
    features: Literal["descriptor", "last_layer", "teacher_outputs", "both"] = Field(
        description="descriptor: pooled multi-scale features (the paper); last_layer: those of the "
        "last tap alone, the control; teacher_outputs: confidence, entropy, energy and margin; "
        "both: descriptor and teacher_outputs"
    )
    attention_reduction: Annotated[int, Field(gt=0)] | None = Field(
        description="r of Eq. 5; null: no attention, a linear score"
    )
    epochs: int = Field(gt=0, description="passes over the unlabeled pool")
    positive_batch_size: int = Field(gt=0, description="positives per step, drawn with replacement")
    unlabeled_batch_size: int = Field(gt=1, description="pool images per step")
    max_unlabeled: int = Field(
        gt=1,
        description="pool images that class prior and classifier are trained on: of a larger pool, "
        "a random sample; all images are scored",
    )
    held_out_folds: int = Field(
        ge=0, description="folds that rank held-out positives; 0: none, and no precision rule"
    )
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    compute: ComputeParams
    training_workers: TrainingWorkersParams = Field(
        default_factory=TrainingWorkersParams,
        description="processes that train a full backbone together",
    )

    @field_validator("class_prior", mode="before")
    @classmethod
    def _is_share_or_audit(cls, value: Any) -> Any:
        """Check both choices together: pydantic would report a fault of each."""
        if value is None or value == AUDIT:
            return value
        fault = f"input should be a number between 0 and 1, `{AUDIT}` or null"
        try:
            share = float(value)
        except (TypeError, ValueError):
            if isinstance(value, str) and get_close_matches(value, [AUDIT]):
                fault += f"; did you mean `{AUDIT}`?"
            raise ValueError(fault) from None
        if not 0 < share < 1:
            raise ValueError(fault)
        return share

    @model_validator(mode="after")
    def _folds_and_features_make_sense(self) -> PUTrainingParams:
        if self.held_out_folds == 1:
            raise ValueError("held_out_folds is 0 (none) or at least 2")
        if self.backbone == "full" and self.features != "descriptor":
            raise ValueError(
                "backbone 'full' trains the descriptor end to end: set features to 'descriptor'"
            )
        # A head alone is trained by one process.
        if self.backbone == "full":
            self.training_workers.check_divides(
                positive_batch_size=self.positive_batch_size,
                unlabeled_batch_size=self.unlabeled_batch_size,
            )
        return self
