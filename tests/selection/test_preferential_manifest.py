"""The manifest to draw from by relatedness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.duplicates import Excluded
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.relatedness.sampling import sampling_probabilities
from pu_kd_pipeline.reporting.relatedness_figure import plot_relatedness
from pu_kd_pipeline.selection.manifest import MANIFEST_COLUMNS
from pu_kd_pipeline.selection.relatedness import (
    indicator_auc,
    preferential_manifest,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table
from tests.selection.builders import (
    params_of,
    store_of,
)


@pytest.fixture
def manifest_read_back(table: ShardedTable, pool: ImageStore, tmp_path: Path) -> pd.DataFrame:
    """The manifest after a trip through its file, where distilling finds it."""
    file = tmp_path / "manifest.parquet"
    manifest = preferential_manifest(table, pool, params_of())
    write_table(manifest, file)
    return read_table(file)


def test_the_manifest_holds_every_pool_image_with_its_teacher_class(
    table: ShardedTable, pool: ImageStore, manifest_read_back: pd.DataFrame
) -> None:
    manifest = manifest_read_back
    expected_columns = MANIFEST_COLUMNS
    assert list(manifest.columns) == expected_columns
    place = ["id", "shard", "row"]
    pd.testing.assert_frame_equal(manifest[place], pool.index[place])
    origins = set(manifest["origin"])
    assert origins == {"pool"}
    # No PU classifier takes part.
    assert manifest["pu_score"].isna().all()

    classes = manifest["teacher_class"].tolist()
    expected_classes = table.arrays("teacher_class")
    assert classes == expected_classes.tolist()


def test_probabilities_follow_from_the_one_class_sum(
    table: ShardedTable, pool: ImageStore, manifest_read_back: pd.DataFrame
) -> None:
    probabilities = manifest_read_back["sampling_probability"].to_numpy()
    # Rounding to float32 would break the sum of one.
    assert probabilities.dtype == np.float64
    total = probabilities.sum()
    assert total == pytest.approx(1, abs=1e-12)
    # No image may become impossible to draw.
    floor = 0.1
    smallest = probabilities.min()
    assert smallest >= floor / len(pool)

    sums = torch.tensor(table.arrays("one_class_sum"))
    expected = sampling_probabilities(sums, temperature=0.5, floor=floor)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-12)


def test_the_manifest_records_how_it_was_made(
    table: ShardedTable, pool: ImageStore, manifest_read_back: pd.DataFrame
) -> None:
    facts = manifest_read_back.attrs
    # Kish's effective sample size, for probabilities that sum to one.
    probabilities = manifest_read_back["sampling_probability"].to_numpy()
    sum_of_squares = (probabilities**2).sum()
    assert facts["effective_sample_size"] == pytest.approx(1 / sum_of_squares)
    assert facts["fingerprints"] == {
        "pool_images": pool.fingerprint,
        "relatedness": table.fingerprint,
    }
    assert facts["rule"] == "preferential"
    assert facts["temperature"] == 0.5
    assert facts["floor"] == 0.1
    assert facts["n_labeled"] == 0
    assert facts["n_selected"] == len(pool)
    assert facts["n_pool"] == len(pool)


def test_digits_are_drawn_more_often_than_their_share(
    table: ShardedTable, pool: ImageStore
) -> None:
    is_relevant = pool.index["relevant"].to_numpy(dtype=bool)
    share_of_pool = is_relevant.mean()
    manifest = preferential_manifest(table, pool, params_of())
    probabilities = manifest["sampling_probability"]
    share_of_draws = probabilities[is_relevant].sum()
    assert share_of_draws > 1.5 * share_of_pool


def test_the_control_draws_evenly_and_is_equal_otherwise(
    table: ShardedTable, pool: ImageStore
) -> None:
    preferred = preferential_manifest(table, pool, params_of())
    uniform = preferential_manifest(table, pool, params_of(sampling="uniform"))

    probabilities = uniform["sampling_probability"].to_numpy()
    np.testing.assert_allclose(probabilities, 1 / len(pool), rtol=1e-12)
    facts = uniform.attrs
    assert facts["effective_sample_size"] == pytest.approx(len(pool))
    assert facts["rule"] == "uniform"
    # The control reads neither.
    assert facts["temperature"] is None
    assert facts["floor"] is None

    # A comparison of both must differ in the draws alone.
    of_draws = ["sampling_probability", "reason"]
    pd.testing.assert_frame_equal(
        preferred.drop(columns=of_draws),
        uniform.drop(columns=of_draws),
        check_flags=False,
    )


def test_a_pool_that_changed_since_is_refused(
    table: ShardedTable, files: dict[str, Path], tmp_path: Path
) -> None:
    fewer_files = {"digits": files["digits"], "noise": files["noise"]}
    fewer = store_of(fewer_files, tmp_path)
    expected = (
        "pool_images changed since they were measured. Run `kedro run --pipeline=relatedness` again"
    )
    with pytest.raises(InputError, match=expected):
        preferential_manifest(table, fewer, params_of())
    with pytest.raises(InputError, match=expected):
        indicator_auc(table, fewer)


def test_excluded_images_are_never_drawn(pool, table):
    ids = pool.index["id"]
    excluded_ids = frozenset(ids[::3])
    excluded = Excluded(pool=excluded_ids)
    manifest = preferential_manifest(table, pool, params_of(), excluded)

    is_excluded = ids.isin(excluded_ids)
    expected_ids = ids[~is_excluded]
    assert manifest["id"].tolist() == expected_ids.tolist()
    # What the excluded images would have had goes to the others.
    total = manifest["sampling_probability"].sum()
    assert total == pytest.approx(1)

    facts = manifest.attrs
    n_counted = facts["n_selected"] + facts["n_excluded_pool"]
    assert facts["n_pool"] == len(pool)
    assert n_counted == len(pool)


def test_excluding_images_keeps_the_columns_of_the_others(pool, table):
    ids = pool.index["id"]
    excluded = Excluded(pool=frozenset(ids[::3]))
    manifest = preferential_manifest(table, pool, params_of(), excluded)

    # A row that moved up by a gap would have the class of another image.
    whole = preferential_manifest(table, pool, params_of()).set_index("id")
    expected = whole.loc[manifest["id"]].reset_index()
    columns = ["id", "shard", "row", "teacher_class", "teacher_confidence"]
    pd.testing.assert_frame_equal(manifest[columns], expected[columns])

    # The figure, too, must find the rows of those that are left.
    auc = indicator_auc(table, pool)
    figure = plot_relatedness(table, pool, manifest, auc)
    figure.canvas.draw()


def test_a_pool_of_which_all_images_are_excluded_is_refused(pool, table):
    every_id = frozenset(pool.index["id"])
    excluded = Excluded(pool=every_id)
    with pytest.raises(InputError, match="every pool image is a copy of a test image"):
        preferential_manifest(table, pool, params_of(), excluded)
