"""The figure of relatedness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.reporting.relatedness_figure import MAX_SOURCES, plot_relatedness
from pu_kd_pipeline.selection.relatedness import (
    indicator_auc,
    preferential_manifest,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.selection.builders import (
    params_of,
    words,
)


@pytest.fixture
def manifest(table: ShardedTable, pool: ImageStore) -> pd.DataFrame:
    params = params_of()
    return preferential_manifest(table, pool, params)


@pytest.fixture
def auc(table: ShardedTable, pool: ImageStore) -> pd.DataFrame:
    return indicator_auc(table, pool)


def test_the_figure_shows_every_source_and_indicator(
    table: ShardedTable, pool: ImageStore, manifest: pd.DataFrame, auc: pd.DataFrame
) -> None:
    figure = plot_relatedness(table, pool, manifest, auc)
    text = words(figure)

    indicators = ("1C-Sum", "ang++", "dms-aos", "last layer")
    sources = ("relevant", "shuffled", "noise", "33.3 % of pool")
    for name in (*indicators, *sources):
        assert name in text, name

    for value in auc["auc"]:
        area = f" {value:.2f} "
        assert area in text

    # The sum, one panel per source, and the table of areas.
    assert len(figure.axes) == 1 + 3 + 1


def test_the_figure_of_the_control_says_that_it_draws_evenly(
    table: ShardedTable, pool: ImageStore, auc: pd.DataFrame
) -> None:
    params = params_of(sampling="uniform")
    manifest = preferential_manifest(table, pool, params)

    figure = plot_relatedness(table, pool, manifest, auc)
    text = words(figure)

    assert "Uniform sampling draws 50.0 % relevant images" in text


def test_the_title_reports_the_share_of_relevant_draws(
    table: ShardedTable, pool: ImageStore, manifest: pd.DataFrame, auc: pd.DataFrame
) -> None:
    figure = plot_relatedness(table, pool, manifest, auc)
    text = words(figure)

    is_relevant = pool.index["relevant"].to_numpy(dtype=bool)
    probabilities = manifest["sampling_probability"]
    relevant_share = probabilities[is_relevant].sum()
    drawn_percent = 100 * relevant_share
    finding = f"Preferential sampling draws {drawn_percent:.1f} % relevant images"
    assert f"{finding} from a pool with 50.0 %" in text

    # Few images drawn again and again would be relevant, and of little use.
    size = manifest.attrs["effective_sample_size"]
    assert f"effective sample size {size:.0f} of 600" in text


def test_the_figure_reports_which_indicator_ranks_best(
    table: ShardedTable, pool: ImageStore, manifest: pd.DataFrame, auc: pd.DataFrame
) -> None:
    figure = plot_relatedness(table, pool, manifest, auc)
    text = words(figure)

    is_whole_pool = auc["source"].isna()
    whole_pool = auc[is_whole_pool]
    by_indicator = whole_pool.set_index("indicator")["auc"]
    # The sum is compared with single indicators, not with itself.
    of_sum = by_indicator["one_class_sum"]
    of_single = by_indicator.drop("one_class_sum")
    best = of_single.max()

    assert f"AUC {of_sum:.3f} by 1C-Sum, {best:.3f} by the best" in text


class ManySources:
    """A pool whose irrelevant images come from more sources than a figure shows."""

    n_sources = MAX_SOURCES + 2

    def __init__(self, pool: ImageStore) -> None:
        self.shards = pool.shards
        self.fingerprint = pool.fingerprint
        self.index = pool.index.copy()

        names = []
        for number in range(len(pool)):
            source_number = number % self.n_sources
            # Long names, because users give long ones.
            name = f"a collection with the number {source_number}"
            names.append(name)

        is_relevant = self.index["relevant"].to_numpy(dtype=bool)
        sources = np.where(is_relevant, "digits", names)
        self.index["source"] = sources

    def __len__(self) -> int:
        return len(self.index)


def percent_before(text: str, word: str) -> float:
    """Return the number in front of `% of` and the word."""
    before, *_ = text.split(f" % of {word}")
    _, _, number = before.rpartition(" ")
    return float(number)


@pytest.mark.parametrize("word", ["pool", "draws"])
def test_many_sources_are_shown_by_the_largest_and_add_up(
    table: ShardedTable, pool: ImageStore, word: str
) -> None:
    many: Any = ManySources(pool)
    params = params_of()
    manifest = preferential_manifest(table, many, params)
    auc = indicator_auc(table, many)

    figure = plot_relatedness(table, many, manifest, auc)
    text = words(figure)
    assert "2 others" in text
    assert "2 sources not shown" in text

    titles = [axes.get_title(loc="right") for axes in figure.axes]
    shares = [title for title in titles if title]
    # The relevant images, the sources that are shown, and the others together.
    assert len(shares) == 1 + MAX_SOURCES + 1
    percentages = [percent_before(share, word) for share in shares]
    total_percent = sum(percentages)
    assert total_percent == pytest.approx(100, abs=0.5)
