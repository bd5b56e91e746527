"""Parameters of the stage `reporting`."""

from __future__ import annotations

from pydantic import Field

from pu_kd_pipeline.params.base import Block


class ReportingParams(Block):
    """The block `reporting`."""

    title: str = Field(description="of the report")
    contact_sheet_images: int = Field(
        ge=1, le=200, description="images in each block of the contact sheet"
    )
