"""How well indicators separate relevant images from others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.relatedness.indicators import INDICATORS
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.reporting.relatedness_figure import plot_relatedness
from pu_kd_pipeline.selection.relatedness import (
    indicator_auc,
    preferential_manifest,
    relatedness_shards,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table
from tests.selection.builders import (
    N_DIGITS,
    params_of,
    store_of,
    words,
)


def is_in_scope(pool: ImageStore, source: object) -> np.ndarray:
    """Return the mask of the relevant images and those of a source; without one, of all."""
    index = pool.index
    if not isinstance(source, str):
        return np.ones(len(index), dtype=bool)
    is_relevant = index["relevant"].to_numpy(dtype=bool)
    is_from_source = index["source"].to_numpy() == source
    return is_relevant | is_from_source


def test_areas_are_those_of_scikit_learn_over_the_pool_and_by_source(
    table: ShardedTable, pool: ImageStore
) -> None:
    auc = indicator_auc(table, pool)
    is_relevant = pool.index["relevant"].to_numpy(dtype=bool)
    is_irrelevant = ~is_relevant

    for _, row in auc.iterrows():
        in_scope = is_in_scope(pool, row["source"])
        truth = is_irrelevant[in_scope]
        values = table.arrays(row["indicator"])
        scores = values[in_scope]
        expected = roc_auc_score(truth, scores)

        assert row["auc"] == pytest.approx(expected)
        assert row["n_relevant"] == N_DIGITS
        assert row["n_irrelevant"] == truth.sum()


def test_every_indicator_and_the_sum_have_an_area_per_source(
    table: ShardedTable, pool: ImageStore
) -> None:
    auc = indicator_auc(table, pool)

    # The pool as a whole, and each of its two irrelevant sources.
    n_scopes = 3
    n_scores = len(INDICATORS) + 1
    assert len(auc) == n_scopes * n_scores

    # The digits are all relevant: their source has no irrelevant image to rank.
    sources = auc["source"].dropna().unique()
    assert sources.tolist() == ["shuffled", "noise"]


def test_the_one_class_sum_separates_digits_from_other_images(
    table: ShardedTable, pool: ImageStore
) -> None:
    auc = indicator_auc(table, pool)
    is_whole_pool = auc["source"].isna()
    whole_pool = auc[is_whole_pool]
    by_indicator = whole_pool.set_index("indicator")
    area = by_indicator.loc["one_class_sum", "auc"]

    assert area > 0.85


@pytest.mark.parametrize(
    ("sources", "labels", "expected"),
    [
        (["digits", "shuffled", "noise"], "ignore", "is not known"),
        (["noise"], "truth", "0.0 % of them are relevant"),
        (["digits"], "truth", "100.0 % of them are"),
    ],
    ids=["hidden", "noise", "digits"],
)
def test_without_the_truth_or_with_one_kind_of_image_there_is_no_area(
    teacher: Model,
    files: dict[str, Path],
    tmp_path: Path,
    sources: list[str],
    labels: str,
    expected: str,
) -> None:
    chosen = {name: files[name] for name in sources}
    store = store_of(chosen, tmp_path / "store", labels=labels)
    params = params_of()
    makers = relatedness_shards(store, teacher, params)
    measured = ShardedTable.write(tmp_path / "table", makers)

    auc = indicator_auc(measured, store)
    assert auc.empty

    # A table without rows keeps its columns in a file, too.
    auc_file = tmp_path / "auc.parquet"
    write_table(auc, auc_file)
    read = read_table(auc_file)
    columns = list(read)
    assert columns == ["source", "indicator", "auc", "n_irrelevant", "n_relevant"]

    manifest = preferential_manifest(measured, store, params)
    figure = plot_relatedness(measured, store, manifest, auc)
    text = words(figure)
    assert expected in text
    assert "AUC" not in text
