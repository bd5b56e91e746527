"""The block `export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pu_kd_pipeline.params.base import SEEDS, Block
from pu_kd_pipeline.params.compute import ComputeParams

Format = Literal["onnx", "int8", "torch_export", "safetensors"]


class FineTuningParams(Block):
    """When and how the student of the int8 file is fine-tuned with the rounding of int8."""

    above_points: float = Field(
        ge=0,
        le=100,
        description="percentage points of agreement with the teacher that int8 may cost on the "
        "checked images; the student is fine-tuned where it costs more",
    )
    n_updates: int = Field(ge=0, description="updates of 64 images; 0: never")
    learning_rate: float = Field(gt=0, description="of Adam, with a cosine schedule")
    n_images: int = Field(
        gt=0, description="images to learn from, of those that the student learned from"
    )
    n_checked: int = Field(
        gt=0,
        description="other ones, to check before and after; at most half of those that are left",
    )


class ExportParams(Block):
    """The block `export`: which files of the student are written, and how they are checked."""

    formats: tuple[Format, ...] = Field(
        min_length=1,
        description="onnx; int8: ONNX with 8-bit weights and activations; torch_export: a program "
        "for torch.export.load; safetensors: the weights alone",
    )
    opset: int = Field(ge=18, le=23, description="version of ONNX's operators")
    tolerance: float = Field(
        gt=0,
        lt=0.01,
        description="largest difference between a logit of a float32 file and that of the student, "
        "as a share of the student's largest absolute logit; larger ones stop the run",
    )
    calibration_images: int = Field(
        gt=0, description="images that the student learned from, which set the ranges of int8"
    )
    fine_tuning: FineTuningParams
    seed: int = Field(ge=0, lt=SEEDS, description="draws those images")
    latency_repeats: int = Field(
        gt=0, description="forward passes of one image by each file; the fastest block is reported"
    )
    compute: ComputeParams

    @field_validator("formats")
    @classmethod
    def _each_format_once(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if len(set(formats)) < len(formats):
            raise ValueError("a format is there twice")
        return formats
