"""The block `predict`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.compute import ComputeParams


class PredictParams(Block):
    """The block `predict`: which image files are classified, and by what."""

    images: str | None = Field(
        description="a folder with all images below it, a file, or a pattern such as "
        "`photos/**/*.jpg`"
    )
    model: Literal["student", "onnx", "int8"] = Field(
        description="student: student_model; onnx, int8: the exported files, by ONNX Runtime on "
        "the CPU"
    )
    top_k: int = Field(gt=0, description="classes that are stored of each image, the best first")
    max_image_pixels: int = Field(gt=0, description="an image that declares more is not decoded")
    n_workers: int = Field(ge=1, description="decoding threads")
    compute: ComputeParams
