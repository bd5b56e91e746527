"""The block `subset_materialization`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pu_kd_pipeline.learning.selection import RULES, needs_budget
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare
from pu_kd_pipeline.params.names import one_of


class SubsetParams(Block):
    """The block `subset_materialization`: which pool images are kept."""

    seed: int = Field(ge=0, lt=SEEDS)
    rule: Annotated[str, one_of(RULES)]
    criterion: Annotated[str, one_of(CRITERIA)] = Field(
        description="nnpu only. sign: score > 0; quantile: the top class_prior share; "
        "precision: down to target_precision; budget: the top `budget`"
    )
    budget: int | None = Field(gt=0, description="most pool images kept; null: no limit")
    target_precision: OpenShare = Field(
        description="criterion precision: lowest estimated precision of the subset"
    )
    exclude_test_duplicates: bool = Field(
        True,
        description="leave pool and labeled images out of every manifest "
        "that are copies of test images",
    )

    @model_validator(mode="after")
    def _budget_where_it_is_needed(self) -> SubsetParams:
        if self.budget is not None or not needs_budget(self.rule, self.criterion):
            return self
        # The message names the cause: the rule itself, or else its criterion.
        rule = RULES[self.rule]
        if rule.needs_budget:
            raise ValueError(f"rule {self.rule!r} needs a budget")
        raise ValueError(f"criterion {self.criterion!r} needs a budget")
