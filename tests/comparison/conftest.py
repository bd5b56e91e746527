"""The images, teacher and features that the tests of comparisons share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from tests.comparison.builders import BASE, demo_inputs, results_of


@pytest.fixture(scope="session")
def blocks() -> Blocks:
    return BASE


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ComparisonInputs:
    return demo_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def results() -> pd.DataFrame:
    """Two seeds of three variants; the second seed of `random` with 5 images is missing."""
    columns = ["variant", "rule", "labeled_per_class", "seed", "accuracy", "auc"]
    rows = [
        ("original", None, None, 0, 0.985, None),
        ("original", None, None, 1, 0.985, None),
        ("pu", "nnpu", 1, 0, 0.90, 0.9),
        ("pu", "nnpu", 1, 1, 0.92, 0.9),
        ("pu", "nnpu", 5, 0, 0.96, 0.9),
        ("pu", "nnpu", 5, 1, 0.96, 0.9),
        ("random", "random", 1, 0, 0.93, None),
        ("random", "random", 1, 1, 0.95, None),
        ("random", "random", 5, 0, 0.95, None),
    ]
    table = pd.DataFrame(rows, columns=columns)
    # The teacher's own training images are the reference: nothing is selected.
    is_reference = table["variant"] == "original"
    table["is_reference"] = is_reference
    table["method"] = np.where(is_reference, "original", "selection")
    table["n_selected"] = np.where(is_reference, 0, 700)
    return results_of(**table)
