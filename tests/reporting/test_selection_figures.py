"""The score histogram, for every rule, with and without the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import StepPatch

from pu_kd_pipeline.reporting.selection_figures import plot_score_histogram
from tests.reporting.toy_run import PRIOR, Store, scored_pool, words


def histogram(prior: dict[str, Any] = PRIOR, **pool: Any) -> Any:
    """Return the figure of a toy pool; `pool` are the arguments of `scored_pool`."""
    scores, manifest, store = scored_pool(**pool)
    return plot_score_histogram(scores, manifest, store, prior)


def stairs(figure: Any) -> list[StepPatch]:
    """Return the outlines and filled areas of the figure's histograms, in drawing order."""
    found = []
    for patch in figure.axes[0].patches:
        # The shaded side of the threshold is a patch as well.
        if isinstance(patch, StepPatch):
            found.append(patch)
    return found


@pytest.mark.parametrize("has_truth", [True, False])
def test_every_image_is_counted_once(has_truth: bool) -> None:
    figure = histogram(n=300, has_truth=has_truth)
    n_counted = 0
    for patch in stairs(figure):
        # Each population has an area and an outline with the same counts.
        if patch.get_fill():
            counts = patch.get_data().values
            n_counted += counts.sum()
    assert n_counted == 300


def test_the_threshold_lies_between_two_bins() -> None:
    first, *_ = stairs(histogram())
    edges = first.get_data().edges
    threshold = 0.0  # of the criterion `sign`
    distance = np.abs(edges - threshold)
    assert distance.min() < 1e-9


def test_precision_and_recall_are_stated_where_the_truth_is_known() -> None:
    scores, manifest, store = scored_pool()
    figure = plot_score_histogram(scores, manifest, store, PRIOR)

    is_selected = scores["pu_score"] > 0
    row = scores["id"].str.removeprefix("pool/").astype(int)
    is_relevant = row % 5 == 0
    n_hits = (is_selected & is_relevant).sum()
    precision = 100 * n_hits / is_selected.sum()
    recall = 100 * n_hits / is_relevant.sum()

    text = words(figure)
    assert f"precision {precision:.1f} %, recall {recall:.1f} %" in text
    assert f"{is_selected.sum()} of 300 pool images selected" in text
    assert "20.0 % (17.0–23.0 %)" in text


def test_neither_precision_nor_recall_is_stated_without_the_truth() -> None:
    text = words(histogram(has_truth=False))
    assert "precision" not in text
    assert "recall" not in text


@pytest.mark.parametrize("rule", ["random", "confident", "all"])
def test_a_rule_that_does_not_cut_the_pu_score_shows_the_selected_images_instead(
    rule: str,
) -> None:
    _, manifest, _ = scored_pool(rule=rule)
    is_from_pool = manifest["origin"] == "pool"

    figure = histogram(rule=rule)
    assert "passes" not in words(figure)
    # Drawn last, on top of the populations.
    *_, last = stairs(figure)
    assert last.get_label() == f"selected ({is_from_pool.sum()})"


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        ({"value": None}, "class prior unknown"),
        ({"value": 0.3, "method": "given"}, "class prior 30.0 % as given"),
        ({"value": 0.3, "lower": 0.3, "upper": 0.3, "method": "bbe"}, "class prior 30.0 %"),
        (PRIOR, "class prior estimated at 20.0 % (17.0–23.0 %)"),
    ],
)
def test_the_class_prior_is_stated_with_its_origin(prior: dict[str, Any], text: str) -> None:
    figure = histogram(prior, has_truth=False)
    evidence = figure.texts[-1]
    assert evidence.get_text() == text


def drawn_for(n_scores: int) -> tuple[int, int]:
    """Return the number of drawn shapes, and of bins, of a histogram of that many scores."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=n_scores)
    scores = pd.DataFrame({"id": np.arange(n_scores), "pu_score": values})
    manifest = pd.DataFrame({"id": [1], "origin": "pool"})
    manifest.attrs = {
        "rule": "nnpu",
        "criterion": "budget",
        "threshold": values[1],
    }
    # Without the truth no image of the store is looked up.
    image = np.zeros((1, 1, 1, 1))
    store: Any = Store(image, ["0"], [None])

    figure = plot_score_histogram(scores, manifest, store, PRIOR)
    axes = figure.axes[0]
    first, *_ = stairs(figure)
    n_bins = len(first.get_data().values)
    return len(axes.patches) + len(axes.lines), n_bins


def test_a_million_scores_are_drawn_with_as_many_shapes_as_a_few() -> None:
    n_shapes_of_few, _ = drawn_for(300)
    n_shapes_of_many, n_bins_of_many = drawn_for(1_000_000)
    assert n_shapes_of_few == n_shapes_of_many
    assert n_bins_of_many < 100


def test_scores_without_a_finite_one_are_refused() -> None:
    scores, manifest, store = scored_pool()
    scores = scores.assign(pu_score=np.nan)
    with pytest.raises(ValueError, match="no finite pu_score"):
        plot_score_histogram(scores, manifest, store, PRIOR)
