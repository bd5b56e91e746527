"""The contact sheet: which images it shows, and what is written below them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.reporting.contact_sheet import SMALL_IMAGE_PX, plot_contact_sheet
from tests.reporting.toy_run import scored_pool, words


def sheet(n_images: int = 4, class_names: list[str] | None = None, **pool: Any) -> Any:
    scores, manifest, store = scored_pool(**pool)
    return plot_contact_sheet(manifest, scores, store, n_images, class_names)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224), (3, 20, 30)])
def test_best_borderline_and_worst_images_are_shown_and_no_others_read(
    shape: tuple[int, int, int],
) -> None:
    scores, manifest, store = scored_pool(n=60, shape=shape)
    figure = plot_contact_sheet(manifest, scores, store, 4)
    shown = [image.get_array() for image in figure.axes[0].images]
    assert len(shown) == 12
    assert store.n_rows_read <= 12

    ranked = scores.sort_values("pu_score", ascending=False)
    is_selected = ranked["id"].isin(manifest["id"])
    best = ranked[:4]
    last_selected = ranked[is_selected][-2:]
    first_left_out = ranked[~is_selected][:2]
    worst = ranked[-4:]
    expected = pd.concat([best, last_selected, first_left_out, worst])
    for image, identifier in zip(shown, expected["id"], strict=True):
        row = int(identifier.removeprefix("pool/"))
        stored = store.read(np.array([row], dtype=np.int64))[0]
        # The store has channels first, matplotlib last; a gray image has none of its own there.
        np.testing.assert_array_equal(np.moveaxis(np.atleast_3d(image), -1, 0), stored)


@pytest.mark.parametrize("size_px", [SMALL_IMAGE_PX, SMALL_IMAGE_PX + 1])
def test_only_large_images_are_smoothed(size_px: int) -> None:
    figure = sheet(n=20, shape=(1, size_px, size_px))
    expected = "nearest" if size_px == SMALL_IMAGE_PX else "antialiased"
    assert {image.get_interpolation() for image in figure.axes[0].images} == {expected}


def test_images_are_ranked_by_the_score_of_the_rule() -> None:
    text = words(sheet(rule="confident"))
    assert "0.80" in text  # the threshold of the confidence
    assert "the last that were selected" in text


@pytest.mark.parametrize("rule", ["random", "disagreement", "all"])
def test_a_rule_without_a_cut_shows_the_middle_of_the_ranking(rule: str) -> None:
    text = words(sheet(rule=rule))
    assert "no cut" in text
    assert "left out" not in text


def test_classes_are_named_where_names_are_given() -> None:
    assert "cat" in words(sheet(class_names=["cat"] * 10))
    assert "cat" not in words(sheet())


def test_the_truth_is_written_only_where_it_is_known() -> None:
    assert "relevant" in words(sheet())
    assert "relevant" not in words(sheet(has_truth=False))


def test_a_pool_smaller_than_a_block_is_shown_whole_in_each() -> None:
    assert len(sheet(n_images=20, n=5).axes[0].images) == 5 + 5 + 5
