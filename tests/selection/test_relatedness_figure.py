"""The figure of relatedness."""

from __future__ import annotations

from typing import Any

import numpy as np
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


def test_the_figure_shows_what_is_drawn_and_which_indicator_ranks_best(
    table: ShardedTable, pool: ImageStore
) -> None:
    manifest = preferential_manifest(table, pool, params_of())
    auc = indicator_auc(table, pool)
    figure = plot_relatedness(table, pool, manifest, auc)
    text = words(figure)
    relevant = pool.index["relevant"].to_numpy(dtype=bool)
    drawn_percent = 100 * manifest["sampling_probability"][relevant].sum()
    finding = f"Preferential sampling draws {drawn_percent:.1f} % relevant images"
    assert f"{finding} from a pool with 50.0 %" in text
    whole = auc[auc["source"].isna()].set_index("indicator")["auc"]
    best = whole.drop("one_class_sum").max()
    assert f"AUC {whole['one_class_sum']:.3f} by 1C-Sum, {best:.3f} by the best" in text
    size = manifest.attrs["effective_sample_size"]
    assert f"effective sample size {size:.0f} of 600" in text
    indicators = ("1C-Sum", "ang++", "dms-aos", "last layer")
    for name in (*indicators, "relevant", "shuffled", "noise", "33.3 % of pool"):
        assert name in text, name
    for value in auc["auc"]:
        assert f" {value:.2f} " in text
    # The sum, one panel per source, and the table of areas.
    assert len(figure.axes) == 1 + 3 + 1


def test_the_figure_of_the_control_says_that_it_draws_evenly(
    table: ShardedTable, pool: ImageStore
) -> None:
    manifest = preferential_manifest(table, pool, params_of(sampling="uniform"))
    text = words(plot_relatedness(table, pool, manifest, indicator_auc(table, pool)))
    assert "Uniform sampling draws 50.0 % relevant images" in text


def test_many_sources_are_shown_by_the_largest_and_add_up(
    table: ShardedTable, pool: ImageStore
) -> None:
    class ManySources:
        index = pool.index.copy()
        shards, fingerprint = pool.shards, pool.fingerprint

        def __len__(self) -> int:
            return len(self.index)

    many: Any = ManySources()
    n_sources = MAX_SOURCES + 2
    relevant = many.index["relevant"].to_numpy(dtype=bool)
    names = np.array(
        [f"a collection with the number {number % n_sources}" for number in range(len(pool))]
    )
    many.index["source"] = np.where(relevant, "digits", names)
    auc = indicator_auc(table, many)
    figure = plot_relatedness(table, many, preferential_manifest(table, many, params_of()), auc)
    said = words(figure)
    assert "2 others" in said
    assert "2 sources not shown" in said
    shares = [axes.get_title(loc="right") for axes in figure.axes if axes.get_title(loc="right")]
    assert len(shares) == 1 + MAX_SOURCES + 1
    for word in ("pool", "draws"):
        of_word = [float(share.split(f" % of {word}")[0].rpartition(" ")[2]) for share in shares]
        assert sum(of_word) == pytest.approx(100, abs=0.5)
