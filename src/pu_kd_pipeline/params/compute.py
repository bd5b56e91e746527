"""Blocks shared by several stages: where a stage runs, and how a network is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pu_kd_pipeline.params.base import Block


class OptimizerParams(Block):
    """An optimizer and its learning rate schedule. Weight decay is L2 in the gradient."""

    algorithm: Literal["sgd", "adam"]
    learning_rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1, description="SGD's momentum, Adam's first beta")
    weight_decay: float = Field(ge=0)
    schedule: Literal["constant", "step", "cosine"] = Field(
        description="step: a tenth after each quarter of the training; cosine: to zero"
    )


class AugmentationParams(Block):
    """Random views of a training batch."""

    padding_px: int = Field(
        ge=0, description="crops are shifted by up to this many pixels, zeros beyond the edge"
    )
    horizontal_flip: bool


class ComputeParams(Block):
    """Where a heavy stage runs."""

    device: str = Field(
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: the first GPU, else the CPU"
    )
    precision: Literal["auto", "float32", "bf16", "fastest"] = Field(
        description="auto: bf16 autocast on GPUs that support it; fastest: also on such CPUs"
    )
    n_threads: int | None = Field(
        gt=0, description="CPU threads; null: torch's choice. Small networks are fastest with one"
    )
    resident_limit_gb: float = Field(
        gt=0, description="training images up to this size are held on the device, 10^9 bytes"
    )
    inference_batch_size: Annotated[int, Field(gt=0)] | None = Field(
        description="null: chosen for the device: a CPU's caches, or a few percent of GPU memory"
    )
