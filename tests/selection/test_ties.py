"""Which images are kept where scores are equal: those of the seed, in whatever order they lie."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
from pu_kd_pipeline.selection.tie_breaks import tie_breaks
from pu_kd_pipeline.storage.sharded_table import InMemoryTable

N_POOL = 400
N_TIED = 300  # the best of them, by every score
BUDGET = 100
RULES = [
    {"rule": "confident"},
    {"rule": "nnpu", "criterion": "budget"},
    {"rule": "nnpu", "criterion": "quantile"},
]


class Store:
    """The part of an image store that a selection reads."""

    fingerprint = "3fa9"

    def __init__(self, ids: list[str]) -> None:
        self.index = pd.DataFrame({"id": ids, "shard": "a", "row": np.arange(len(ids))})
        self.index["label"] = 0
        self.index["relevant"] = pd.array([None] * len(ids), "boolean")

    def __len__(self) -> int:
        return len(self.index)


def inputs_of(order: np.ndarray, **scores: Any) -> SubsetInputs:
    """Return a pool whose images lie in the given order; `scores` are by image, as are the ids."""
    ids = [f"pool/{number}" for number in order]
    store: Any = Store(ids)
    labeled: Any = Store(["labeled/0"])
    columns: dict[str, Any] = {"id": ids, "teacher_class": np.zeros(N_POOL, dtype=np.int32)}
    for name, values in scores.items():
        columns[name] = values[order]
    table = InMemoryTable.of("scores", [pa.table(columns)])
    prior = {"value": BUDGET / N_POOL, "lower": 0.2, "upper": 0.3}
    return SubsetInputs(table, labeled, store, prior, pd.DataFrame({"rank": []}))


def tied_scores() -> dict[str, np.ndarray]:
    is_tied = np.arange(N_POOL) < N_TIED
    return {
        "pu_score": is_tied.astype(np.float32),
        "teacher_confidence": np.where(is_tied, 1, 0.5).astype(np.float32),
        "teacher_log_odds": np.where(is_tied, 90.0, 0.0),
    }


def chosen(inputs: SubsetInputs, **changes: Any) -> pd.DataFrame:
    """Return the pool images of the manifest; its `attrs` are those of the manifest."""
    given = {"seed": 0, "criterion": "sign", "budget": BUDGET, "target_precision": 0.9}
    params = SubsetParams.model_validate({**given, **changes})
    manifest = choose_subset(inputs, params)
    return manifest[manifest["origin"] == "pool"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule.values()))
def test_ties_are_broken_by_the_seed_and_not_by_the_order_of_the_images(rule, caplog):
    scores = tied_scores()
    in_order = inputs_of(np.arange(N_POOL), **scores)
    shuffled = inputs_of(np.random.default_rng(5).permutation(N_POOL), **scores)

    kept = chosen(in_order, **rule)["id"].tolist()
    assert len(kept) == BUDGET
    # Not the first images of the file.
    numbers = [int(name.removeprefix("pool/")) for name in kept]
    assert 100 < np.mean(numbers) < 200
    assert chosen(shuffled, **rule)["id"].tolist() == kept
    assert set(chosen(in_order, seed=1, **rule)["id"]) != set(kept)
    assert "cuts among 300 images with the same score (100 are kept in all)" in caplog.text


def test_the_number_of_tied_images_is_recorded_and_no_tie_is_not_reported(caplog):
    scores = tied_scores()
    pool = inputs_of(np.arange(N_POOL), **scores)
    assert chosen(pool, rule="confident").attrs["n_tied_at_cut"] == N_TIED
    # All that tie are kept: no tie decides.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert chosen(pool, rule="confident", budget=N_TIED).attrs["n_tied_at_cut"] == 0
    assert not caplog.records


def test_a_confidence_of_exactly_one_is_still_ranked():
    log_odds = np.linspace(40, 20, N_POOL)
    confidence = np.ones(N_POOL, dtype=np.float32)
    order = np.random.default_rng(0).permutation(N_POOL)
    pool = inputs_of(order, teacher_confidence=confidence, teacher_log_odds=log_odds)
    manifest = chosen(pool, rule="confident")
    assert manifest["id"].tolist() == [f"pool/{number}" for number in range(BUDGET)]
    assert manifest.attrs["n_tied_at_cut"] == 0
    assert manifest.attrs["threshold"] == log_odds[BUDGET - 1]
    # No PU classifier was trained, so none of its scores is in the manifest.
    assert manifest["pu_score"].isna().all()


def test_a_table_without_the_score_of_the_rule_is_refused():
    scores = tied_scores()
    del scores["teacher_log_odds"]
    pool = inputs_of(np.arange(N_POOL), **scores)
    with pytest.raises(InputError, match=r"column teacher_log_odds is missing.*pool_scoring"):
        chosen(pool, rule="confident")
    # Other rules do not read it.
    assert len(chosen(pool, rule="nnpu", criterion="budget")) == BUDGET


def test_tie_breaks_stay_the_same_in_other_versions():
    # Numbers of another version would change which images a rule keeps.
    ids = pd.Series(["pool/0", "pool/1", "ä"])
    expected = [10652060153452955259, 2964900309950734047, 4413198479078848431]
    assert tie_breaks(ids, 0).tolist() == expected
    assert tie_breaks(ids[::-1], 0).tolist() == expected[::-1]
    assert (tie_breaks(ids, 1) != tie_breaks(ids, 0)).all()
