"""The score histogram, for every rule, with and without the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import StepPatch

from pu_kd_pipeline.reporting.selection_figures import plot_score_histogram
from tests.reporting.toy_run import PRIOR, Store, scored_pool, words


def stairs(figure: Any) -> list[StepPatch]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]


@pytest.mark.parametrize("has_truth", [True, False])
def test_every_image_is_counted_once(has_truth: bool) -> None:
    scores, manifest, store = scored_pool(has_truth=has_truth)
    figure = plot_score_histogram(scores, manifest, store, PRIOR)
    filled = [patch.get_data() for patch in stairs(figure) if patch.get_fill()]
    assert sum(data.values.sum() for data in filled) == len(scores)
    assert len(filled) == (2 if has_truth else 1)


def test_the_threshold_lies_between_two_bins() -> None:
    scores, manifest, store = scored_pool()
    figure = plot_score_histogram(scores, manifest, store, PRIOR)
    edges = stairs(figure)[0].get_data().edges
    threshold = 0.0  # of the criterion `sign`
    assert np.abs(edges - threshold).min() < 1e-9


def test_precision_and_recall_are_stated_where_the_truth_is_known() -> None:
    scores, manifest, store = scored_pool()
    text = words(plot_score_histogram(scores, manifest, store, PRIOR))

    is_selected = scores["pu_score"] > 0
    is_relevant = scores["id"].str.removeprefix("pool/").astype(int) % 5 == 0
    n_hits = (is_selected & is_relevant).sum()
    precision = 100 * n_hits / is_selected.sum()
    recall = 100 * n_hits / is_relevant.sum()
    assert f"precision {precision:.1f} %, recall {recall:.1f} %" in text
    assert f"{is_selected.sum()} of 300 pool images selected" in text
    assert "20.0 % (17.0–23.0 %)" in text


def test_neither_precision_nor_recall_is_stated_without_the_truth() -> None:
    scores, manifest, store = scored_pool(has_truth=False)
    text = words(plot_score_histogram(scores, manifest, store, PRIOR))
    assert "precision" not in text
    assert "recall" not in text


@pytest.mark.parametrize("rule", ["random", "confident", "all"])
def test_a_rule_that_does_not_cut_the_pu_score_shows_the_selected_images_instead(
    rule: str,
) -> None:
    scores, manifest, store = scored_pool(rule=rule)
    figure = plot_score_histogram(scores, manifest, store, PRIOR)
    n_selected = (manifest["origin"] == "pool").sum()
    assert "passes" not in words(figure)
    assert stairs(figure)[-1].get_label() == f"selected ({n_selected})"


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
    scores, manifest, store = scored_pool(has_truth=False)
    figure = plot_score_histogram(scores, manifest, store, prior)
    assert figure.texts[-1].get_text() == text


def drawn_for(n_scores: int) -> tuple[int, int]:
    """Return the number of drawn shapes, and of bins, of a histogram of that many scores."""
    values = np.random.default_rng(0).normal(size=n_scores)
    scores = pd.DataFrame({"id": np.arange(n_scores), "pu_score": values})
    manifest = pd.DataFrame({"id": [1], "origin": "pool"})
    manifest.attrs = {"rule": "nnpu", "criterion": "budget", "threshold": values[1]}
    store: Any = Store(np.zeros((1, 1, 1, 1)), ["0"], [None])
    figure = plot_score_histogram(scores, manifest, store, PRIOR)
    axes = figure.axes[0]
    n_bins = len(stairs(figure)[0].get_data().values)
    return len(axes.patches) + len(axes.lines), n_bins


def test_a_million_scores_are_drawn_with_as_many_shapes_as_a_few() -> None:
    n_shapes_of_few, _ = drawn_for(300)
    n_shapes_of_many, n_bins_of_many = drawn_for(1_000_000)
    assert n_shapes_of_few == n_shapes_of_many
    assert n_bins_of_many < 100


def test_scores_without_a_finite_one_are_refused() -> None:
    scores, manifest, store = scored_pool()
    with pytest.raises(ValueError, match="no finite pu_score"):
        plot_score_histogram(scores.assign(pu_score=np.nan), manifest, store, PRIOR)
