"""The block `export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pu_kd_pipeline.params.base import SEEDS, Block
from pu_kd_pipeline.params.compute import ComputeParams

Format = Literal["onnx", "int8", "torch_export", "safetensors"]


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
