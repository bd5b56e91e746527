"""The block `subset_materialization`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pu_kd_pipeline.learning.selection import needs_budget
from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare


class SubsetParams(Block):
    """The block `subset_materialization`: which pool images are kept."""

    seed: int = Field(ge=0, lt=SEEDS)
    rule: Literal["nnpu", "random", "oracle", "confident", "stratified", "disagreement", "all"]
    criterion: Literal["sign", "quantile", "precision", "budget"] = Field(
        description="nnpu only. sign: score > 0; quantile: the top class_prior share; precision: down to "
        "target_precision; budget: the top `budget`"
    )
    budget: int | None = Field(gt=0, description="most pool images kept; null: no limit")
    target_precision: OpenShare = Field(
        description="criterion precision: lowest estimated precision of the subset"
    )
    exclude_test_duplicates: bool = Field(
        True,
        description="leave pool and labeled images out of every manifest that are copies of test images",
    )

    @model_validator(mode="after")
    def _budget_where_it_is_needed(self) -> SubsetParams:
        if self.budget is None and needs_budget(self.rule, self.criterion):
            raise ValueError(
                "criterion 'budget' needs a budget"
                if self.rule == "nnpu"
                else f"rule {self.rule!r} needs a budget"
            )
        return self
