"""The block `student_search`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.pilot import HalvingParams

Limit = Annotated[float, Field(gt=0)]


class StudentFamily(Block):
    """Students of related architectures: every architecture with every combination of options."""

    architectures: tuple[str, ...] = Field(
        min_length=1,
        description="names as in distillation.student_architecture; each has all options",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="name -> value, or a list of values to combine"
    )


class StudentSearchParams(HalvingParams):
    """The block `student_search`: the best student below a limit of its cost."""

    key: ClassVar[str] = "student_search"

    latency_ms: Limit | None = Field(
        None, description="of one image on this machine's CPU, one thread; null: any"
    )
    size_mb: Limit | None = Field(None, description="of the weights, 10^6 bytes; null: any")
    mflops: Limit | None = Field(
        None, description="of one image, 10^6, two for a multiplication with an addition; null: any"
    )
    latency_repeats: int = Field(gt=0, description="forward passes of one image by each student")
    max_students: int = Field(
        gt=0, description="students that are trained: the largest ones of each family in turn"
    )
    families: dict[str, StudentFamily | None] = Field(
        description="name -> students that may be chosen; null leaves a family of conf/base out"
    )

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of the parameter."""
        given = {name: getattr(self, name) for name in ("latency_ms", "size_mb", "mflops")}
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _has_families(self) -> StudentSearchParams:
        if all(family is None for family in self.families.values()):
            raise ValueError("families must name at least one")
        return self
