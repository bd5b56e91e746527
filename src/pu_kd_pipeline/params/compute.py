"""Blocks shared by several stages: where a stage runs, and how a network is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pu_kd_pipeline.params.base import Block


class OptimizerParams(Block):
    """An optimizer and its learning rate schedule. Weight decay is L2 in the gradient."""

    algorithm: Literal["sgd", "adam"] = Field(description="torch.optim.SGD or torch.optim.Adam")
    learning_rate: float = Field(gt=0, description="at the start of the schedule")
    momentum: float = Field(ge=0, lt=1, description="SGD's momentum, Adam's first beta")
    weight_decay: float = Field(ge=0, description="L2 penalty, added to the gradient")
    schedule: Literal["constant", "step", "cosine"] = Field(
        description="step: a tenth after each quarter of the training; cosine: to zero"
    )


_Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class AugmentationParams(Block):
    """Random views of a training batch."""

    padding_px: int = Field(
        ge=0, description="crops are shifted by up to this many pixels, zeros beyond the edge"
    )
    horizontal_flip: bool = Field(description="mirror half of the images")
    resized_crop_scale: _Range | None = Field(
        None,
        description="smallest and largest share of the area that a random crop shows, resized to "
        "the whole image; for photos, and instead of padding_px. null: no resized crops",
    )
    resized_crop_ratio: _Range = Field(
        (3 / 4, 4 / 3), description="smallest and largest width / height of these crops"
    )
    brightness: float = Field(
        0.0,
        ge=0,
        description="b: each image times a factor between max(0, 1 - b) and 1 + b, as "
        "torchvision's ColorJitter; for photos",
    )
    contrast: float = Field(0.0, ge=0, description="as brightness, around the image's mean gray")
    saturation: float = Field(0.0, ge=0, description="as brightness, around the gray image")

    @model_validator(mode="after")
    def _crops_make_sense(self) -> AugmentationParams:
        scale = self.resized_crop_scale
        for name, bounds in (
            ("resized_crop_scale", scale),
            ("resized_crop_ratio", self.resized_crop_ratio),
        ):
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"{name} is [smallest, largest], and {bounds[0]:g} is above")
        if scale is not None and scale[1] > 1:
            raise ValueError("resized_crop_scale is a share of the image's area, at most 1")
        if scale is not None and self.padding_px > 0:
            raise ValueError(
                "resized_crop_scale and padding_px both crop: set padding_px to 0, or "
                "resized_crop_scale to null"
            )
        return self


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


class TrainingWorkersParams(Block):
    """How many processes train a network together (docs/data_parallel.md)."""

    n: int = Field(
        1,
        gt=0,
        description="processes, each with an equal part of every batch; 1: the training runs in "
        "the process of the pipeline. With GPUs, each has its own",
    )
    timeout_s: float = Field(
        600.0,
        gt=0,
        description="a process that waits longer for another one ends the training; longer than "
        "what the first one does alone, such as writing a checkpoint",
    )

    def check_divides(self, **batch_sizes: int) -> None:
        """Check that batches can be divided into equal parts.

        Args:
            batch_sizes: by the name of their key.

        Raises:
            ValueError: one cannot.
        """
        for key, size in batch_sizes.items():
            if size % self.n:
                raise ValueError(
                    f"{key} {size} cannot be divided among {self.n} workers (training_workers.n): "
                    "make it a multiple of their number"
                )
