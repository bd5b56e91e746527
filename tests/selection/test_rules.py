"""One record is enough for a new selection rule: parameters, figures and summaries read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from pu_kd_pipeline.comparison.looks import role_colors
from pu_kd_pipeline.learning.selection import RULES, PoolScores, Rule, Selection
from pu_kd_pipeline.learning.selection_criteria import SelectionOptions
from pu_kd_pipeline.learning.selection_size import selection_size
from pu_kd_pipeline.params.comparison import METHODS
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.reporting.contact_sheet import plot_contact_sheet
from pu_kd_pipeline.reporting.selection_figures import score_threshold
from pu_kd_pipeline.reporting.summary import selection_rows

SUBSET = {"seed": 0, "criterion": "quantile", "budget": 2, "target_precision": 0.9}


def least_confident(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the images of which the teacher is least sure: a rule that the package does not have."""
    assert pool.teacher_log_odds is not None
    ranking = np.argsort(pool.teacher_log_odds, kind="stable")
    rows = ranking[: options.budget]
    last = rows[-1]
    threshold = float(pool.teacher_log_odds[last])
    return Selection(rows, threshold, None)


NEW_RULE = Rule(
    select=least_confident,
    reason="least confident",
    reads_pu_score=False,
    ranked_by="teacher_log_odds",
    has_threshold=True,
    needs_budget=True,
    note="least sure first",
)


@pytest.fixture
def new_rule(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(RULES, "least_confident", NEW_RULE)
    return "least_confident"


def scored_pool() -> pd.DataFrame:
    # The two orders differ, so that a figure that ranks by the wrong column is noticed.
    pu_score = np.array([3, 2, 1, 0], dtype=np.float32)
    confidence = np.array([0.5, 0.9, 0.6, 0.8], dtype=np.float32)
    return pd.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "pu_score": pu_score,
            "teacher_class": [0, 1, 0, 1],
            "teacher_confidence": confidence,
            "teacher_log_odds": np.log(confidence / (1 - confidence)),
        }
    )


def manifest_of(rule: str, threshold: float | None) -> pd.DataFrame:
    manifest = pd.DataFrame({"id": ["b", "d"], "origin": "pool"})
    manifest.attrs = {"rule": rule, "criterion": None, "threshold": threshold}
    return manifest


class Store:
    """The part of an image store that the contact sheet reads."""

    index = pd.DataFrame({"id": ["a", "b", "c", "d"], "relevant": pd.array([None] * 4, "boolean")})

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), 1, 8, 8), dtype=np.uint8)


def test_a_new_rule_is_accepted_by_the_parameters(new_rule: str) -> None:
    params = SubsetParams(**SUBSET, rule=new_rule)
    assert params.rule == new_rule


def words_of_sheet(manifest: pd.DataFrame) -> list[str]:
    """Return everything written in the contact sheet of a manifest."""
    store: Any = Store()
    sheet = plot_contact_sheet(manifest, scored_pool(), store, n_images=2)
    texts = list(sheet.texts)
    for axes in sheet.axes:
        texts += axes.texts
    return [text.get_text() for text in texts]


def test_a_new_rule_that_needs_a_budget_gets_one_from_the_training(new_rule: str) -> None:
    size = selection_size(new_rule, "quantile", None, n_draws=150, n_pool=4)
    assert size.budget == 3


def test_an_unknown_rule_is_refused_with_all_names() -> None:
    *all_but_last, last = RULES
    assert last == "all"
    listed = ", ".join(repr(name) for name in all_but_last)
    with pytest.raises(ValidationError, match=rf"{listed} or 'all'"):
        SubsetParams(**SUBSET, rule="randm")


def test_an_unknown_criterion_is_refused_with_all_names() -> None:
    misspelled = {**SUBSET, "criterion": "precison"}
    with pytest.raises(ValidationError, match="or 'budget'"):
        SubsetParams(**misspelled, rule="nnpu")


def test_a_new_rule_has_its_captions(new_rule: str) -> None:
    manifest = manifest_of(new_rule, 0.8)
    assert score_threshold(manifest, "teacher_log_odds") == 0.8
    # The threshold is one of log odds: a line in the histogram of PU scores would be wrong.
    assert score_threshold(manifest, "pu_score") is None

    words = words_of_sheet(manifest)
    assert "Borderline: the last that were selected" in words
    assert "here the log odds of the teacher's class" in " ".join(words)


def test_a_new_rule_has_its_note_in_the_summary(new_rule: str) -> None:
    selection = {"n_selected": 2, "n_pool": 4, "rule": new_rule}
    [row] = selection_rows({"selection": selection})
    assert row[1] == "2 of 4 (least_confident, least sure first)"


def test_a_new_rule_without_a_threshold_shows_the_middle_of_the_ranking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = replace(NEW_RULE, ranked_by=None, has_threshold=False)
    monkeypatch.setitem(RULES, "drawn", drawn)
    manifest = manifest_of("drawn", None)
    words = words_of_sheet(manifest)
    assert "Middle of the ranking (this rule has no cut)" in words

    # A threshold in the manifest of such a rule is none of its scores.
    with_threshold = manifest_of("drawn", 0.8)
    assert score_threshold(with_threshold, "pu_score") is None


@pytest.mark.parametrize("column", ["pu_score", "teacher_log_odds"])
@pytest.mark.parametrize("name", RULES)
def test_figures_of_a_rule_follow_its_record(name: str, column: str) -> None:
    rule = RULES[name]
    expected = None
    if rule.has_threshold and rule.ranked_by == column:
        expected = 0.5
    manifest = manifest_of(name, 0.5)
    assert score_threshold(manifest, column) == expected


def test_every_rule_and_method_has_a_color_of_its_own() -> None:
    colors = role_colors([*RULES, *METHODS])
    # Those without a fixed color take a free one, and the free ones suffice so far.
    assert len(set(colors.values())) == len(colors)


def test_a_new_rule_takes_a_free_color(new_rule: str) -> None:
    roles = [*RULES, *METHODS]
    colors = role_colors(roles)
    used = list(colors.values())
    color = colors[new_rule]
    # Another role of the same color could not be told apart.
    assert used.count(color) == 1


@pytest.mark.parametrize("facts", [{"ranked_by": None}, {"ranked_by": "pu_score"}])
def test_a_record_that_contradicts_itself_is_refused_by_the_name_of_its_function(
    facts: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match="rule 'least_confident' .*: set `"):
        replace(NEW_RULE, **facts)


def test_a_record_that_lacks_a_fact_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="'needs_budget'"):
        Rule(  # type: ignore[call-arg]
            select=least_confident, reads_pu_score=False, ranked_by=None, has_threshold=False
        )
