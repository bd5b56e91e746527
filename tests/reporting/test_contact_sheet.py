"""The contact sheet: which images it shows, and what is written below them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.reporting.contact_sheet import SMALL_IMAGE_PX, plot_contact_sheet
from tests.reporting.toy_run import scored_pool, words


def sheet(n_images: int = 4, class_names: list[str] | None = None, **pool: Any) -> Any:
    """Return the contact sheet of a toy pool; `pool` are the arguments of `scored_pool`."""
    scores, manifest, store = scored_pool(**pool)
    return plot_contact_sheet(manifest, scores, store, n_images, class_names)


def sheet_images(figure: Any) -> list[Any]:
    """Return the drawn images, in the order in which they are shown."""
    [axes] = figure.axes
    return list(axes.images)


def stored_pixels(store: Any, identifier: str) -> np.ndarray:
    row = int(identifier.removeprefix("pool/"))
    rows = np.array([row], dtype=np.int64)
    [pixels] = store.read(rows)
    return pixels


def drawn_pixels(image: Any) -> np.ndarray:
    # matplotlib has the channels last, and no such axis for a gray image.
    channels_last = np.atleast_3d(image.get_array())
    return np.moveaxis(channels_last, -1, 0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224), (3, 20, 30)])
def test_best_borderline_and_worst_images_are_shown_and_no_others_read(
    shape: tuple[int, int, int],
) -> None:
    scores, manifest, store = scored_pool(n=60, shape=shape)
    figure = plot_contact_sheet(manifest, scores, store, 4)
    shown = sheet_images(figure)
    assert len(shown) == 12
    # An image that is in two blocks is read once.
    assert store.n_rows_read <= 12

    ranked = scores.sort_values("pu_score", ascending=False)
    is_selected = ranked["id"].isin(manifest["id"])
    selected = ranked[is_selected]
    left_out = ranked[~is_selected]
    best = ranked[:4]
    borderline = pd.concat([selected[-2:], left_out[:2]])
    worst = ranked[-4:]
    expected = pd.concat([best, borderline, worst])
    for image, identifier in zip(shown, expected["id"], strict=True):
        stored = stored_pixels(store, identifier)
        np.testing.assert_array_equal(drawn_pixels(image), stored)


def test_images_that_no_rule_may_select_are_not_borderline() -> None:
    scores, manifest, store = scored_pool(n=60)
    ranked = scores.sort_values("pu_score", ascending=False)
    left_out = ranked["id"][~ranked["id"].isin(manifest["id"])].tolist()
    # Every second one, as the yardstick takes them from anywhere.
    excluded = left_out[::2]
    decided = left_out[1::2]

    figure = plot_contact_sheet(manifest, scores, store, 4, excluded_ids=excluded)
    best, borderline = sheet_images(figure)[:4], sheet_images(figure)[4:8]
    for image, identifier in zip(borderline[2:], decided, strict=False):
        np.testing.assert_array_equal(drawn_pixels(image), stored_pixels(store, identifier))
    # The other blocks are of the whole pool.
    for image, identifier in zip(best, ranked["id"], strict=False):
        np.testing.assert_array_equal(drawn_pixels(image), stored_pixels(store, identifier))


@pytest.mark.parametrize(
    ("size_px", "interpolation"),
    [(SMALL_IMAGE_PX, "nearest"), (SMALL_IMAGE_PX + 1, "antialiased")],
)
def test_only_large_images_are_smoothed(size_px: int, interpolation: str) -> None:
    figure = sheet(n=20, shape=(1, size_px, size_px))
    for image in sheet_images(figure):
        assert image.get_interpolation() == interpolation


def test_images_are_ranked_by_the_score_of_the_rule() -> None:
    figure = sheet(rule="confident")
    text = words(figure)
    # The cut is one of the log odds, 1.4.
    assert "log odds of the teacher's class" in text
    assert "1.4" in text
    assert "the last that were selected" in text


@pytest.mark.parametrize("rule", ["random", "disagreement", "all"])
def test_a_rule_without_a_cut_shows_the_middle_of_the_ranking(rule: str) -> None:
    text = words(sheet(rule=rule))
    assert "no cut" in text
    assert "left out" not in text


def test_classes_are_named_where_names_are_given() -> None:
    names = ["cat"] * 10
    with_names = words(sheet(class_names=names))
    without_names = words(sheet())
    assert "cat" in with_names
    assert "cat" not in without_names


def test_the_truth_is_written_only_where_it_is_known() -> None:
    with_truth = words(sheet())
    without_truth = words(sheet(has_truth=False))
    assert "relevant" in with_truth
    assert "relevant" not in without_truth


def test_a_pool_smaller_than_a_block_is_shown_whole_in_each() -> None:
    n = 5
    figure = sheet(n_images=20, n=n)
    # Best, borderline and worst.
    n_blocks = 3
    shown = sheet_images(figure)
    assert len(shown) == n_blocks * n
