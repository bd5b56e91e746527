"""A PU classifier and a class prior of a random sample of a large pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.features.reading import feature_tensors, read_log_odds
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.storage.sharded_table import (
    InMemoryTable,
    ShardedTable,
    as_array,
    fixed_size_list,
)
from pu_kd_pipeline.training.class_prior import estimate_prior
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from pu_kd_pipeline.training.pu_steps import unlabeled_rows
from tests.training.checkpoints.test_resuming import pu_params
from tests.training.scene import COMPUTE, Scene

CPU = torch.device("cpu")
SHARD_SIZES = (7, 1, 40, 23)


def pool_params(n_at_most: int, **changes: object) -> PUTrainingParams:
    return pu_params(max_unlabeled=n_at_most, **changes)


@pytest.fixture
def labeled(digits: Scene, tmp_path: Path) -> ShardedTable:
    return ShardedTable.write(
        tmp_path / "labeled", feature_shards(digits.labeled, digits.teacher, COMPUTE)
    )


@pytest.fixture
def pool(digits: Scene, tmp_path: Path) -> ShardedTable:
    """Return the features of the pool in shards of different sizes, and one without a row."""
    made = [make() for make in feature_shards(digits.pool, digits.teacher, COMPUTE).values()]
    table = pa.concat_tables(made).combine_chunks()
    shards = {"none": table.slice(0, 0)}
    start = 0
    for number, n in enumerate((*SHARD_SIZES, len(table) - sum(SHARD_SIZES))):
        shards[f"{number}"] = table.slice(start, n)
        start += n
    makers = {name: (lambda part=part: part) for name, part in shards.items()}
    return ShardedTable.write(tmp_path / "pool", makers)


def part_of(pool: ShardedTable, rows: np.ndarray) -> InMemoryTable:
    whole = pa.concat_tables(pool.shards())
    return InMemoryTable.of("part", [whole.take(pa.array(rows))])


def test_the_sample_is_all_of_a_small_pool_and_random_rows_of_a_large_one():
    all_rows = unlabeled_rows(50, pool_params(50))
    assert all_rows.tolist() == list(range(50))

    params = pool_params(2_000)
    rows = unlabeled_rows(100_000, params)
    assert len(rows) == 2_000
    assert (np.diff(rows) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < 100_000
    # A tenth of the pool holds a tenth of the sample: five standard errors are 67.
    counts, _ = np.histogram(rows, bins=10, range=(0, 100_000))
    assert abs(counts - 200).max() < 67
    assert (rows == unlabeled_rows(100_000, params)).all()
    assert (rows != unlabeled_rows(100_000, pool_params(2_000, seed=1))).any()


@pytest.mark.parametrize("kind", ["descriptor", "last_layer", "teacher_outputs", "both"])
def test_rows_across_shards_are_those_of_the_whole_table(pool, kind):
    ids, features = feature_tensors(pool, kind, CPU)
    for rows in (
        np.array([], dtype=np.int64),
        np.array([0]),
        np.array([6, 7, 8, 47, 48, len(ids) - 1]),
        np.arange(len(ids)),
    ):
        found_ids, found = feature_tensors(pool, kind, CPU, rows)
        assert found_ids.tolist() == ids[rows].tolist()
        assert torch.equal(found, features[torch.from_numpy(rows)])
        assert (read_log_odds(pool, rows) == read_log_odds(pool)[rows]).all()


def test_a_head_on_a_sample_is_that_of_a_pool_of_these_images(digits, labeled, pool):
    params = pool_params(70)
    rows = unlabeled_rows(len(pool), params)
    assert len(rows) == 70 < len(pool)
    found, history, ranks = train_head(labeled, pool, digits.teacher, 0.4, params)
    part = part_of(pool, rows)
    expected, expected_history, expected_ranks = train_head(
        labeled, part, digits.teacher, 0.4, params
    )
    for name, weights in found.module.state_dict().items():
        assert torch.equal(weights, expected.module.state_dict()[name]), name
    assert history.equals(expected_history)
    assert ranks.equals(expected_ranks)


def test_a_class_prior_of_a_sample_is_that_of_a_pool_of_these_images(labeled, pool, caplog):
    params = pool_params(70)
    # Half of the pool looks like nothing that is labeled.
    whole = pa.concat_tables(pool.shards())
    descriptors = as_array(whole["descriptor"]).copy()
    descriptors[::2] += 5
    column = fixed_size_list(descriptors)
    place = whole.schema.get_field_index("descriptor")
    pool = InMemoryTable.of("pool", [whole.set_column(place, "descriptor", column)])
    part = part_of(pool, unlabeled_rows(len(pool), params))
    caplog.set_level("INFO", logger="pu_kd_pipeline")
    found = estimate_prior(labeled, pool, params)
    assert f"a random sample of 70 of the {len(pool)} pool images" in caplog.text
    assert found == estimate_prior(labeled, part, params)
    assert found["n_unlabeled"] == 70


def test_a_backbone_is_trained_on_the_images_of_the_sample_alone(digits, monkeypatch):
    params = pool_params(30, backbone="full", unlabeled_batch_size=10)
    rows = unlabeled_rows(len(digits.pool), params)
    read = set()
    read_rows = type(digits.pool).read

    def recorded(store, rows_read):
        if store.folder == digits.pool.folder:
            read.update(np.asarray(rows_read).tolist())
        return read_rows(store, rows_read)

    monkeypatch.setattr(type(digits.pool), "read", recorded)
    train_end_to_end(digits.labeled, digits.pool, digits.teacher, 0.4, params)
    assert read == set(rows.tolist())
