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


def test_the_manifest_holds_every_pool_image_with_its_probability(
    table: ShardedTable, pool: ImageStore, tmp_path: Path
) -> None:
    write_table(preferential_manifest(table, pool, params_of()), tmp_path / "manifest.parquet")
    manifest = read_table(tmp_path / "manifest.parquet")
    assert list(manifest.columns) == [*MANIFEST_COLUMNS, "sampling_probability"]
    pd.testing.assert_frame_equal(
        manifest[["id", "shard", "row"]], pool.index[["id", "shard", "row"]]
    )
    assert set(manifest["origin"]) == {"pool"}
    assert manifest["pu_score"].isna().all()
    assert manifest["teacher_class"].tolist() == table.arrays("teacher_class").tolist()
    probabilities = manifest["sampling_probability"].to_numpy()
    assert probabilities.dtype == np.float64
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert probabilities.min() >= 0.1 / len(pool)
    sums = torch.tensor(table.arrays("one_class_sum"))
    expected = sampling_probabilities(sums, temperature=0.5, floor=0.1)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-12)
    facts = manifest.attrs
    assert facts["effective_sample_size"] == pytest.approx(1 / (probabilities**2).sum())
    assert facts["fingerprints"] == {
        "pool_images": pool.fingerprint,
        "relatedness": table.fingerprint,
    }
    names = ("rule", "temperature", "floor", "n_labeled", "n_selected", "n_pool")
    assert [facts[name] for name in names] == ["preferential", 0.5, 0.1, 0, len(pool), len(pool)]


def test_digits_are_drawn_more_often_than_their_share_and_evenly_by_the_control(
    table: ShardedTable, pool: ImageStore
) -> None:
    relevant = pool.index["relevant"].to_numpy(dtype=bool)
    preferred = preferential_manifest(table, pool, params_of())
    share_of_draws = preferred["sampling_probability"][relevant].sum()
    assert share_of_draws > 1.5 * relevant.mean()
    uniform = preferential_manifest(table, pool, params_of(sampling="uniform"))
    probabilities = uniform["sampling_probability"].to_numpy()
    np.testing.assert_allclose(probabilities, 1 / len(pool), rtol=1e-12)
    assert uniform.attrs["effective_sample_size"] == pytest.approx(len(pool))
    assert uniform.attrs["rule"] == "uniform"
    # The control reads neither.
    assert uniform.attrs["temperature"] is None
    assert uniform.attrs["floor"] is None
    columns = [name for name in preferred if name != "sampling_probability"]
    pd.testing.assert_frame_equal(preferred[columns], uniform[columns], check_flags=False)


def test_a_pool_that_changed_since_is_refused(
    table: ShardedTable, files: dict[str, Path], tmp_path: Path
) -> None:
    fewer = store_of({name: files[name] for name in ("digits", "noise")}, tmp_path)
    expected = (
        "pool_images changed since they were measured. Run `kedro run --pipeline=relatedness` again"
    )
    with pytest.raises(InputError, match=expected):
        preferential_manifest(table, fewer, params_of())
    with pytest.raises(InputError, match=expected):
        indicator_auc(table, fewer)


def test_excluded_images_are_never_drawn(pool, table):
    ids = pool.index["id"]
    excluded = Excluded(pool=frozenset(ids[::3]))
    manifest = preferential_manifest(table, pool, params_of(), excluded)
    assert manifest["id"].tolist() == [each for each in ids if each not in excluded.pool]
    assert manifest["sampling_probability"].sum() == pytest.approx(1)
    facts = manifest.attrs
    assert facts["n_pool"] == len(pool)
    assert facts["n_selected"] + facts["n_excluded_pool"] == len(pool)
    whole = preferential_manifest(table, pool, params_of()).set_index("id")
    expected = whole.loc[manifest["id"]].reset_index()
    columns = ["id", "shard", "row", "teacher_class", "teacher_confidence"]
    pd.testing.assert_frame_equal(manifest[columns], expected[columns])
    plot_relatedness(table, pool, manifest, indicator_auc(table, pool)).canvas.draw()


def test_a_pool_of_which_all_images_are_excluded_is_refused(pool, table):
    excluded = Excluded(pool=frozenset(pool.index["id"]))
    with pytest.raises(InputError, match="every pool image is a copy of a test image"):
        preferential_manifest(table, pool, params_of(), excluded)
