"""The simulation of audits: pools with another class prior, and the measures of one pool."""

from __future__ import annotations

import numpy as np
import pytest
from experiments.audit_coverage import rows_with_prior, simulate


@pytest.mark.parametrize("prior", [0.05, 0.3, 0.8])
def test_images_of_one_kind_are_left_out_until_the_prior_is_met(prior):
    truth = np.arange(1000) < 300
    rows = rows_with_prior(truth, prior, np.random.default_rng(0))
    assert truth[rows].mean() == pytest.approx(prior, abs=0.002)
    assert len(np.unique(rows)) == len(rows)
    # Of the other kind none is missing.
    kept = truth[rows].sum() if prior >= 0.3 else (~truth[rows]).sum()
    assert kept == (300 if prior >= 0.3 else 700)


def test_strata_that_are_pure_leave_no_error():
    strata = np.repeat(np.arange(6), [10, 10, 20, 40, 80, 160])
    rng = np.random.default_rng(0)
    prior, rmse, coverage, width = simulate(strata, strata < 3, 50, 5, rng)
    assert prior == pytest.approx(40 / 320)
    assert rmse == pytest.approx(0)
    assert coverage == 1
    assert 0 < width < 0.4
