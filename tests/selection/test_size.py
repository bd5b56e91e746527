"""Manifests without a budget, and with a class prior that is flagged."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.class_prior.readings import SOURCES_DIFFER
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
from tests.selection.test_reasons import inputs, params_of  # noqa: F401
from tests.selection.test_ties import N_POOL

FLAGGED = {
    "value": 0.01,
    "lower": 0.01,
    "upper": 0.02,
    "flag": SOURCES_DIFFER,
    "readings": {"trained": 0.01, "outputs": 0.31, "outputs_bbe": 0.33},
}


@pytest.fixture
def flagged(inputs: SubsetInputs) -> SubsetInputs:  # noqa: F811
    return replace(inputs, class_prior=FLAGGED)


def n_kept(manifest: Any) -> int:
    return int((manifest["origin"] == "pool").sum())


@pytest.mark.parametrize("rule", ["random", "confident", "stratified", "retrieved", "disagreement"])
def test_without_a_budget_the_training_decides_the_number(
    inputs: SubsetInputs,  # noqa: F811
    rule: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        manifest = choose_subset(inputs, params_of(rule=rule, budget=None))
    # 50 batches of 20, three quarters of each from the pool: 750 showings.
    assert n_kept(manifest) == 15
    assert manifest.attrs["size_source"] == "50 showings"
    assert f"keeps 15 of {N_POOL} pool images; the number comes from: 50 showings" in caplog.text


def test_without_a_flag_the_paper_keeps_the_class_prior(
    inputs: SubsetInputs,  # noqa: F811
) -> None:
    manifest = choose_subset(inputs, params_of(rule="nnpu", criterion="quantile", budget=None))
    assert n_kept(manifest) == round(inputs.class_prior["value"] * N_POOL)
    assert manifest.attrs["size_source"] == "class prior"


@pytest.mark.parametrize("budget", [None, 40])
@pytest.mark.parametrize("criterion", ["quantile", "precision"])
def test_a_flagged_class_prior_does_not_cut(
    flagged: SubsetInputs, criterion: str, budget: int | None
) -> None:
    params = params_of(rule="nnpu", criterion=criterion, budget=budget)
    if criterion == "quantile" and budget is not None:
        manifest = choose_subset(flagged, params)
        # More than the class prior's five images: those with the highest scores.
        by_budget = choose_subset(flagged, params_of(rule="nnpu", criterion="budget", budget=40))
        assert manifest["id"].tolist() == by_budget["id"].tolist()
        assert manifest.attrs["criterion"] == "budget"
        return
    with pytest.raises(InputError) as error:
        choose_subset(flagged, params)
    message = str(error.value)
    assert "sources_differ" in message
    assert "0.010" in message
    assert "0.310" in message
    assert "set pu_training.class_prior, or" in message
    assert "subset_materialization.budget" in message


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "nnpu"])
def test_rules_that_do_not_cut_by_the_class_prior_run_with_a_flag(
    flagged: SubsetInputs, rule: str
) -> None:
    manifest = choose_subset(flagged, params_of(rule=rule, criterion="quantile", budget=None))
    assert n_kept(manifest) > 0


def test_disagreement_with_a_flag_takes_as_many_likely_positives_as_it_keeps(
    flagged: SubsetInputs,
) -> None:
    manifest = choose_subset(flagged, params_of(rule="disagreement", budget=80))
    drawn = manifest[manifest["reason"] == "disagreement"]
    scores = flagged.pool_scores.to_pandas()["pu_score"]
    # By the flagged prior, five images would be likely positives.
    assert len(drawn) > 20
    assert drawn["pu_score"].min() >= scores.nlargest(80).min()
