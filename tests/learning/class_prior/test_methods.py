"""The records of the class prior methods: one is enough to add a method, and all are complete."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior
from pu_kd_pipeline.learning.class_prior.methods import (
    METHODS,
    SCORES,
    ClassPriorMethod,
    describe_methods,
    method_title,
)
from pu_kd_pipeline.params.pu_training import ClassPriorParams


def test_one_record_adds_a_method_to_parameters_estimates_and_reports(monkeypatch):
    constant = ClassPriorMethod(
        title="Constant", evidence=SCORES, estimate=lambda positive, unlabeled: (0.25, None)
    )
    monkeypatch.setitem(METHODS, "constant", constant)

    # Each of these would fail where a second list of methods existed.
    params = ClassPriorParams(method="constant", n_folds=2, epochs=1, n_bootstrap=20, level=0.9)
    scores = np.linspace(0, 1, 60)
    rng = np.random.default_rng(0)
    estimate = estimate_class_prior(scores, scores, method=params.method, rng=rng)

    assert estimate.value == 0.25
    assert estimate.method == "constant"
    assert method_title(estimate.method) == "Constant"
    assert "bbe, dedpul, constant: read the scores" in describe_methods()


@pytest.mark.parametrize("missing", ["title", "evidence", "estimate"])
def test_a_record_that_lacks_a_part_is_refused_by_its_name(missing):
    parts = dataclasses.asdict(METHODS["bbe"])
    del parts[missing]

    with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{missing}'"):
        ClassPriorMethod(**parts)


def test_a_method_of_another_version_keeps_its_name_in_reports():
    assert method_title("km2") == "KM2"
    # A report may be of results that a newer version has computed.
    assert method_title("of the future") == "of the future"
