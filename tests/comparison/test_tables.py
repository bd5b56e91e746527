"""The results of a comparison as tables."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.comparison.tables import means_over_seeds


def test_the_deviation_is_that_of_a_sample_of_seeds(results):
    means = means_over_seeds(results).set_index(["row", "labeled_per_class"])
    expected = 100 * np.std([0.90, 0.92], ddof=1)
    assert means.loc[("pu", 1.0), "std"] == pytest.approx(expected)


def test_several_objectives_are_rows_of_their_own(results):
    results["objective"] = ["kd"] * 4 + ["robust_kd"] * 2 + ["kd"] * 3
    rows = list(means_over_seeds(results)["row"].unique())
    assert rows == ["original", "pu · kd", "pu · robust_kd", "random"]
