"""Manifests without a budget: how many images are kept, and why."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
from tests.selection.test_reasons import inputs, params_of  # noqa: F401
from tests.selection.test_ties import N_POOL


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
    assert n_kept(manifest) == 75
    assert manifest.attrs["size_source"] == "10 showings"
    assert f"keeps 75 of {N_POOL} pool images; the number comes from: 10 showings" in caplog.text


def test_without_a_flag_the_paper_keeps_the_class_prior(
    inputs: SubsetInputs,  # noqa: F811
) -> None:
    manifest = choose_subset(inputs, params_of(rule="nnpu", criterion="quantile", budget=None))
    assert n_kept(manifest) == round(inputs.class_prior["value"] * N_POOL)
    assert manifest.attrs["size_source"] == "class prior"
