"""What every manifest says of its images: why they are there, and how they are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.mixture import DEFAULT_TEMPERATURE, effective_number
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.params.subset_materialization import RetrievedParams, SubsetParams
from pu_kd_pipeline.reporting.sampling_rows import draw_rows, reason_rows
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset, choose_subset
from pu_kd_pipeline.selection.retrieval import find_neighbors
from pu_kd_pipeline.storage.manifest import (
    is_preferred,
    manifest_digest,
    prefers_images,
    reason_counts,
)
from pu_kd_pipeline.storage.sharded_table import InMemoryTable, fixed_size_list
from pu_kd_pipeline.storage.table import read_table, write_table
from tests.selection.test_ties import N_POOL, inputs_of
from tests.training.scene import params_with

BUDGET = 100
SUBSET = {"seed": 0, "criterion": "sign", "budget": BUDGET, "target_precision": 0.9}
STUDENT = params_with(n_updates=50, batch_size=20, labeled_share=0.25)


class Proxy:
    """A proxy that diverges everywhere by the same."""

    def divergence(self, manifest: pd.DataFrame, labeled: Any, pool: Any) -> np.ndarray:
        # Nothing is known yet of how these are drawn.
        assert manifest["sampling_probability"].isna().all()
        return np.ones(len(pool), dtype=np.float32)


def features_of(ids: list[str], vectors: np.ndarray, n_shards: int = 1) -> InMemoryTable:
    tables = []
    for rows in np.array_split(np.arange(len(ids)), n_shards):
        columns = {
            "id": pa.array([ids[row] for row in rows], pa.string()),
            "descriptor": fixed_size_list(vectors[rows].astype(np.float16)),
            "logits": fixed_size_list(vectors[rows].astype(np.float32)),
        }
        tables.append(pa.table(columns))
    return InMemoryTable.of("features", tables)


@pytest.fixture(scope="module")
def inputs() -> SubsetInputs:
    rng = np.random.default_rng(0)
    scores = {
        "pu_score": rng.normal(size=N_POOL).astype(np.float32),
        "teacher_confidence": rng.uniform(0.1, 0.9, N_POOL).astype(np.float32),
        "teacher_log_odds": rng.normal(size=N_POOL),
    }
    made = inputs_of(rng.permutation(N_POOL), **scores)
    made.pool_images.index["relevant"] = pd.array(rng.random(N_POOL) < 0.5, "boolean")
    pool_ids = made.pool_images.index["id"].tolist()
    features = (
        features_of(["labeled/0"], np.ones((1, 6))),
        features_of(pool_ids, rng.normal(size=(N_POOL, 6)), n_shards=3),
    )
    proxy: Any = Proxy()
    return replace(made, proxy=proxy, student=STUDENT, features=features)


def params_of(**changes: Any) -> SubsetParams:
    return SubsetParams.model_validate({**SUBSET, **changes})


@pytest.mark.parametrize("rule", RULES)
def test_every_manifest_has_reasons_and_probabilities_in_its_file(
    inputs: SubsetInputs, tmp_path: Path, rule: str
) -> None:
    file = tmp_path / "manifest.parquet"
    write_table(choose_subset(inputs, params_of(rule=rule)), file)
    manifest = read_table(file)
    is_pool = manifest["origin"] == "pool"
    of_pool = manifest["sampling_probability"][is_pool]
    assert of_pool.sum() == pytest.approx(1.0)
    assert manifest["sampling_probability"][~is_pool].isna().all()
    assert manifest["reason"].notna().all()
    assert (manifest["reason"][~is_pool] == "labeled").all()
    if rule == "mixture":
        assert of_pool.nunique() > 1
    else:
        assert of_pool.nunique() == 1
    # Only the chosen rule's options are facts of the manifest.
    options = {"mixture", "retrieved", "rolling"} & set(manifest.attrs)
    assert options == {RULES[rule].options} - {None}


def test_the_random_control_of_each_rule_is_random(inputs: SubsetInputs) -> None:
    params = params_of(rule="mixture")
    control = choose_random_subset(inputs, choose_subset(inputs, params), params)
    assert reason_counts(control) == {"labeled": 1, "random": BUDGET}


def test_the_probabilities_of_a_mixture_are_the_average_of_its_draws(
    inputs: SubsetInputs,
) -> None:
    options = {"temperature": 0.02, "max_repeats": 10.0}
    manifest = choose_subset(inputs, params_of(rule="mixture", budget=None, mixture=options))
    of_pool = manifest[manifest["origin"] == "pool"]
    related = of_pool["related_probability"].to_numpy()
    # 50 batches of 20, of which a quarter is labeled; half of the schedule's area is related.
    mean = 10 * effective_number(related) / (50 * 15)
    assert mean < 1
    expected = mean * related + (1 - mean) / len(of_pool)
    np.testing.assert_allclose(of_pool["sampling_probability"], expected)


@pytest.mark.parametrize(
    ("value", "outputs", "given", "expected"),
    [
        (0.2, (0.3, 0.2), None, 0.15),
        (0.3, (0.2, 0.1), None, 0.15),
        (0.02, (0.03, 0.4), None, 0.2),
        # A class prior that the user gave has no second reading.
        (0.08, None, None, 0.04),
        # Without a PU classifier nothing is known.
        (None, None, None, DEFAULT_TEMPERATURE),
        (0.2, (0.3, 0.2), 0.01, 0.01),
    ],
)
def test_the_temperature_of_a_mixture_is_half_of_the_class_prior(
    inputs: SubsetInputs,
    value: float | None,
    outputs: tuple[float, float] | None,
    given: float | None,
    expected: float,
) -> None:
    prior = {**inputs.class_prior, "value": value, "readings": None}
    if outputs is not None:
        dedpul, bbe = outputs
        prior["readings"] = {"trained": value, "outputs": dedpul, "outputs_bbe": bbe}
    params = params_of(rule="mixture", budget=None, mixture={"temperature": given})
    manifest = choose_subset(replace(inputs, class_prior=prior), params)
    assert manifest.attrs["mixture"]["temperature"] == pytest.approx(expected)

    same = params_of(rule="mixture", budget=None, mixture={"temperature": expected})
    by_number = choose_subset(inputs, same)
    assert manifest["related_probability"].equals(by_number["related_probability"])


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_related_images_of_a_mixture_are_drawn_more_often_than_evenly(
    inputs: SubsetInputs, budget: int | None
) -> None:
    manifest = choose_subset(inputs, params_of(rule="mixture", budget=budget))
    of_pool = manifest[manifest["origin"] == "pool"]
    is_more_often = of_pool["sampling_probability"] > 1 / len(of_pool)
    assert is_more_often.any()
    assert not is_more_often.all()
    assert ((of_pool["reason"] == "related") == is_more_often).all()
    assert is_preferred(manifest).sum() == is_more_often.sum()


def test_all_pool_images_of_a_rule_that_cuts_are_preferred(inputs: SubsetInputs) -> None:
    manifest = choose_subset(inputs, params_of(rule="random"))
    assert is_preferred(manifest).sum() == BUDGET
    assert not prefers_images(manifest)


def test_a_mixture_with_other_options_is_another_manifest(
    inputs: SubsetInputs, tmp_path: Path
) -> None:
    one = choose_subset(inputs, params_of(rule="mixture"))
    other = choose_subset(inputs, params_of(rule="mixture", mixture={"max_repeats": 3}))
    assert one["id"].tolist() == other["id"].tolist()
    assert manifest_digest(one) != manifest_digest(other)
    # A file keeps what the digest is of.
    file = tmp_path / "manifest.parquet"
    write_table(one, file)
    assert manifest_digest(read_table(file)) == manifest_digest(one)


def test_a_mixture_needs_the_length_of_the_training(inputs: SubsetInputs) -> None:
    with pytest.raises(InputError, match="needs the student's parameters"):
        choose_subset(replace(inputs, student=None), params_of(rule="mixture"))


def test_the_score_of_a_mixture_decides_whether_a_classifier_is_trained() -> None:
    assert params_of(rule="mixture").reads_pu_score
    by_teacher = params_of(rule="mixture", mixture={"score": "teacher_log_odds"})
    assert not by_teacher.reads_pu_score
    assert by_teacher.ranked_by == "teacher_log_odds"
    # Options of other rules change nothing.
    other = params_of(rule="nnpu", mixture={"score": "teacher_log_odds"})
    assert other.reads_pu_score
    assert other.unread_option_blocks() == {"mixture", "retrieved", "rolling"}


# --- retrieval ---


@pytest.mark.parametrize("space", ["descriptor", "probability"])
def test_the_nearest_images_are_retrieved_whatever_the_shards(
    inputs: SubsetInputs, space: str
) -> None:
    rng = np.random.default_rng(3)
    pool = inputs.pool_images
    pool_ids = pool.index["id"].tolist()
    vectors = rng.normal(size=(N_POOL, 6)).astype(np.float16)
    queries = rng.normal(size=(2, 6)).astype(np.float16)
    labeled = features_of(["a", "b"], queries)
    # Every third image cannot be selected, such as a copy of a test image.
    rows = np.flatnonzero(np.arange(N_POOL) % 3 > 0)
    params = RetrievedParams(space=space, duplicate_cosine=2.0, n_clusters=5)
    ids = np.array(["b", "a"])

    found = []
    for n_shards in (1, 4):
        features = features_of(pool_ids, vectors, n_shards)
        found.append(find_neighbors(ids, labeled, features, pool, rows, 80, params, 0))
    one, other = found
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.clusters, other.clusters)
    assert set(one.clusters.tolist()) == set(range(5))
    assert len(one.clusters) == len(rows)

    def transformed(values: np.ndarray) -> np.ndarray:
        exact = values.astype(np.float64)
        if space == "probability":
            exact = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
        else:
            mean = vectors.astype(np.float64).mean(axis=0)
            exact = (exact - mean) / vectors.astype(np.float64).std(axis=0)
        return exact / np.linalg.norm(exact, axis=1, keepdims=True)

    cosines = transformed(queries)[::-1] @ transformed(vectors[rows]).T
    for nearest, of_query in zip(one.rows, cosines, strict=True):
        expected = np.sort(of_query)[::-1][: len(nearest)]
        np.testing.assert_allclose(of_query[nearest], expected, atol=1e-5)


def test_features_of_other_images_are_refused(inputs: SubsetInputs) -> None:
    assert inputs.features is not None
    labeled, pool = inputs.features
    few = features_of(inputs.pool_images.index["id"].tolist()[:50], np.ones((50, 6)))
    for features in ((labeled, few), (features_of(["x"], np.ones((1, 6))), pool)):
        with pytest.raises(InputError, match="they hold"):
            choose_subset(replace(inputs, features=features), params_of(rule="retrieved"))


# --- words ---


def test_reasons_are_counted_by_kind() -> None:
    reasons = ["labeled", "retrieved for cats/1 for you", "retrieved for b", "cluster"]
    manifest = pd.DataFrame({"reason": reasons})
    counts = reason_counts(manifest)
    assert counts == {"labeled": 1, "retrieved": 2, "cluster": 1}
    rows = reason_rows({"selection": {"reasons": counts}})
    assert rows[1] == ["reason: retrieved", "2 images (50.0 %)"]


def test_a_manifest_of_an_earlier_version_gets_a_sentence() -> None:
    counts = reason_counts(pd.DataFrame({"id": ["a"], "origin": ["pool"]}))
    [row] = reason_rows({"selection": {"reasons": counts}})
    assert "it is of an earlier version" in row[1]
    # Metrics of an earlier version say nothing of reasons.
    assert reason_rows({"selection": {}}) == []
    assert draw_rows({"selection": {}}) == []


def test_the_report_states_shares_and_shows() -> None:
    sampling = {
        "labeled_share": 0.15,
        "manifest_labeled_share": 0.019,
        "labeled_shows": 72.0,
        "pool_shows": 7.89,
        "related": {"first": 1.0, "last": 0.0, "end": 0.5, "n_effective": 827.2, "shows": 150},
    }
    rows = dict(draw_rows({"selection": {"sampling": sampling}}))
    assert rows["labeled images"] == (
        "15.0 % of every batch (1.9 % of the manifest), each shown 72 times"
    )
    assert rows["selected pool images"] == "each shown 7.9 times on average"
    assert rows["related images"] == (
        "from 100 % to 0 % of the pool images of a batch, reached after 50 % of the training; "
        "those of about 827 are drawn often, and shown 150 times by these draws"
    )
