"""How many pool images a rule keeps, and where that number comes from."""

from __future__ import annotations

from dataclasses import dataclass

from pu_kd_pipeline.learning.selection import RULES, needs_budget
from pu_kd_pipeline.learning.selection_criteria import CRITERIA

SHOWINGS = 50
"""Without a budget, a rule that needs one keeps as many images as training shows so often."""

BUDGET = "budget"
CLASS_PRIOR = "class prior"


@dataclass(frozen=True)
class SelectionSize:
    """The budget that a rule gets, and the origin of the number of images that it keeps."""

    budget: int | None
    """None: the rule decides alone."""
    source: str
    """`BUDGET`, the number of showings, or what the rule itself cuts by."""

    def source_of(self, n_selected: int, own_source: str) -> str:
        """Return where the number of the selected images comes from.

        A rule that finds fewer images than its budget, or that no budget limits, has cut by itself.
        """
        if n_selected == self.budget:
            return self.source
        return own_source


def selection_size(
    rule: str,
    criterion: str,
    budget: int | None,
    *,
    n_draws: float,
    n_pool: int,
    showings: float = SHOWINGS,
) -> SelectionSize:
    """Return how many images a rule may keep.

    A given budget decides. Without one, a rule that needs one gets as many images as the training
    shows `showings` times each, and at most the pool: fewer repeat more often, and more are hardly
    seen. Other rules cut by themselves (`own_source`).

    Args:
        rule: a key of `RULES`.
        criterion: a key of `CRITERIA`.
        budget: what the user asks for, > 0; None: nothing.
        n_draws: pool images in all batches of the student's training, >= 0.
        n_pool: images to choose from, > 0.
        showings: how often each is shown, > 0.
    """
    if budget is not None:
        return SelectionSize(budget, BUDGET)
    if not needs_budget(rule, criterion):
        return SelectionSize(None, own_source(rule, criterion))
    n_shown = round(n_draws / showings)
    # A training of a few batches still needs an image.
    n_shown = max(1, min(n_shown, n_pool))
    return SelectionSize(n_shown, f"{showings:g} showings")


def own_source(rule: str, criterion: str) -> str:
    """Return what a rule cuts by where its budget does not."""
    record = RULES[rule]
    if record.uses_criterion:
        return CRITERIA[criterion].cuts_by
    return record.cuts_by
