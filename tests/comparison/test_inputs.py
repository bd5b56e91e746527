"""What the cells of a comparison share: draws of labeled images, monitored images, tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pu_kd_pipeline.comparison.inputs import labeled_rows
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.storage.sharded_table import InMemoryTable


def test_draws_of_a_seed_nest_and_seeds_differ(inputs):
    store = inputs.labeled_images
    few = labeled_rows(store, 2, seed=0)
    more = labeled_rows(store, 5, seed=0)
    other = labeled_rows(store, 2, seed=1)

    labels = store.index["label"].to_numpy(dtype=int)
    few_labels = labels[few]
    n_per_class = np.bincount(few_labels)
    assert n_per_class.tolist() == [2] * 10

    few_rows = set(few)
    more_rows = set(more)
    other_rows = set(other)
    # Otherwise more labels and other labels would be compared at the same time.
    assert few_rows <= more_rows
    assert few_rows != other_rows

    steps = np.diff(few)
    assert (steps > 0).all()


def test_a_subset_of_a_store_reads_like_a_store(inputs):
    store = inputs.labeled_images
    rows = labeled_rows(store, 2, 0)
    subset = ImageSubset.of(store, rows)

    assert isinstance(subset, ImageStore)
    assert len(subset) == 20
    assert subset.image_shape == store.image_shape

    ids = subset.index["id"].tolist()
    all_ids = store.index["id"]
    expected_ids = all_ids.iloc[rows]
    assert ids == expected_ids.tolist()

    # Not in the order of the rows, as batches ask for them.
    positions = np.array([3, 0])
    images = subset.read(positions)
    expected_images = store.read(rows[positions])
    np.testing.assert_array_equal(images, expected_images)


def test_another_subset_has_another_fingerprint(inputs):
    store = inputs.labeled_images
    rows = labeled_rows(store, 2, 0)
    subset = ImageSubset.of(store, rows)
    fewer_rows = rows[1:]
    smaller = ImageSubset.of(store, fewer_rows)

    assert subset.fingerprint != smaller.fingerprint


def test_a_table_in_memory_reads_like_one_on_disk(inputs):
    features = inputs.pool_features
    shards = list(features.shards())
    table = InMemoryTable.of("copy", shards)

    assert len(table) == len(features)
    assert table.facts == features.facts

    ids = table.to_pandas()["id"].tolist()
    expected_ids = features.arrays("id")
    assert ids == expected_ids.tolist()

    logits = table.arrays("logits")
    expected_logits = features.arrays("logits")
    np.testing.assert_array_equal(logits, expected_logits)


def test_images_of_the_pool_and_without_a_label_are_not_monitored(inputs):
    # With the pool made of them, none of the teacher's training images is left to monitor.
    teacher_images = inputs.teacher_training_images
    both = replace(inputs, pool_images=teacher_images)
    expected = "and 0 of the teacher's training images have a label and are not in the pool"
    with pytest.raises(InputError, match=expected):
        both.watching(1)
