"""The results of a comparison as tables."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.comparison.tables import means_over_seeds


def test_the_deviation_is_that_of_a_sample_of_seeds(results):
    means = means_over_seeds(results).set_index(["row", "labeled_per_class"])
    deviation = means.loc[("pu", 1.0), "std"]
    # Two seeds are a sample: divided by one, not by two.
    expected = 100 * np.std([0.90, 0.92], ddof=1)
    assert deviation == pytest.approx(expected)


def test_several_objectives_are_rows_of_their_own(results):
    # Only `pu` has two of them.
    is_robust = (results["variant"] == "pu") & (results["labeled_per_class"] == 5)
    results["objective"] = np.where(is_robust, "robust_kd", "kd")
    means = means_over_seeds(results)
    rows = means["row"].unique()
    assert list(rows) == ["original", "pu · kd", "pu · robust_kd", "random"]
