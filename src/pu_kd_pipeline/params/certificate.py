"""The block `certificate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pu_kd_pipeline.params.base import Block

Limit = Annotated[float, Field(gt=0, le=1)]


class CertificateParams(Block):
    """The block `certificate`: what the pipeline `certify` asks of a student."""

    min_agreement: Limit | None = Field(
        None,
        description="smallest agreement with the teacher: the lower limit of its 95 % interval "
        "has to reach it; null: any",
    )
    min_accuracy: Limit | None = Field(
        None,
        description="smallest accuracy: the lower limit of its 95 % interval has to reach it, or, "
        "without labels of test images, the bound by teacher and agreement; null: any",
    )
