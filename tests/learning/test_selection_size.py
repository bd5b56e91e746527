"""How many images a rule keeps, and where the number comes from."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.learning.selection import RULES, needs_budget
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.learning.selection_size import (
    BUDGET,
    CLASS_PRIOR,
    SHOWINGS,
    own_source,
    selection_size,
)

CASES = [(rule, "quantile") for rule in RULES if rule != "nnpu"]
CASES += [("nnpu", criterion) for criterion in CRITERIA]


@pytest.mark.parametrize(("rule", "criterion"), CASES)
def test_a_budget_decides_for_every_rule(rule: str, criterion: str) -> None:
    size = selection_size(rule, criterion, 7, n_draws=1000, n_pool=5000)
    assert size.budget == 7
    assert size.source_of(7, own_source(rule, criterion)) == BUDGET


@pytest.mark.parametrize(("rule", "criterion"), CASES)
def test_without_a_budget_a_rule_that_needs_one_keeps_what_training_shows_often(
    rule: str, criterion: str
) -> None:
    size = selection_size(rule, criterion, None, n_draws=1000, n_pool=5000)
    if needs_budget(rule, criterion):
        assert size.budget == 1000 / SHOWINGS
        assert size.source == "50 showings"
    else:
        assert size.budget is None
        assert size.source == own_source(rule, criterion)


def test_the_class_prior_alone_decides_only_for_the_papers_rule() -> None:
    deciding = [case for case in CASES if own_source(*case) == CLASS_PRIOR]
    assert deciding == [("nnpu", "quantile")]


def test_a_rule_that_finds_fewer_than_its_budget_has_cut_by_itself() -> None:
    size = selection_size("nnpu", "quantile", 100, n_draws=1000, n_pool=5000)
    source = own_source("nnpu", "quantile")
    assert size.source_of(60, source) == CLASS_PRIOR
    # The rule `all` keeps everything, whatever the budget.
    all_of_them = selection_size("all", "quantile", 100, n_draws=1000, n_pool=5000)
    assert all_of_them.source_of(5000, own_source("all", "quantile")) == "whole pool"


@pytest.mark.parametrize(("n_draws", "n_kept"), [(0, 1), (4, 1), (49_000, 300), (15_000, 300)])
def test_the_number_is_at_least_one_image_and_at_most_the_pool(n_draws: int, n_kept: int) -> None:
    assert selection_size("random", "sign", None, n_draws=n_draws, n_pool=300).budget == n_kept


def test_fewer_showings_keep_more_images() -> None:
    kept = []
    for showings in (4, 8):
        size = selection_size("random", "sign", None, n_draws=4000, n_pool=5000, showings=showings)
        kept.append((size.budget, size.source))
    assert kept == [(1000, "4 showings"), (500, "8 showings")]
