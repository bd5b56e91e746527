"""The score histogram, and what figures read from a manifest: its images, its truth, its cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.reporting.style import (
    INK,
    RELEVANT,
    STUDENT,
    UNLABELED,
    darker,
    new_figure,
    percent,
    set_title,
    style_axes,
)
from pu_kd_pipeline.storage.manifest import is_preferred, prefers_images

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pu_kd_pipeline.images.store import ImageStore


_UNKNOWN = "#d9d9d9"  # next to images of known truth: paler than the ones that are not relevant


@dataclass(frozen=True)
class _Population:
    """A part of the pool, shown as one filled histogram."""

    name: str
    color: str
    mask: np.ndarray
    """(n,) bool over the pool images."""


def plot_score_histogram(
    pool_scores: pd.DataFrame,
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    class_prior: Mapping[str, Any],
) -> Figure:
    """Return the histogram of PU scores, with the threshold and, where known, the truth.

    Args:
        pool_scores: one row per pool image; `id`, `pu_score`.
        manifest: the selected images, `id` and `origin`; attrs `rule`, `criterion` and
            `threshold` (None without a cut).
        pool_images: its index has `relevant`; null where the truth is unknown.
        class_prior: `value` in [0, 1], and where it was estimated `lower` and `upper`.

    Raises:
        ValueError: no score is finite.
    """
    scores = pool_scores["pu_score"].to_numpy(np.float64)
    is_finite = np.isfinite(scores)
    if not is_finite.any():
        raise ValueError("pool_scores holds no finite pu_score: there is no histogram to draw")
    is_selected = selection_mask(pool_scores, manifest)
    relevant = relevance(pool_scores, pool_images)
    threshold = score_threshold(manifest, "pu_score")
    n_selected = int(is_selected.sum())
    n_pool = len(scores)

    # Binned here: a million scores then take no more drawing than a hundred.
    edges = _bin_edges(scores[is_finite], threshold)
    selected_scores = scores[is_selected & is_finite]
    selected_counts = _count(selected_scores, edges)

    figure = new_figure(4.3)
    axes = figure.add_subplot()
    peaks = [selected_counts.max()]
    for population in _populations(relevant):
        population_scores = scores[population.mask & is_finite]
        counts = _count(population_scores, edges)
        peaks.append(counts.max())
        _draw_population(axes, population, counts, edges)

    first_edge = edges[0]
    last_edge = edges[-1]
    bin_width = edges[1] - first_edge
    margin = 0.5 * bin_width
    axes.set_xlim(first_edge - margin, last_edge + margin)

    n_passing = None
    if threshold is not None:
        _mark_threshold(axes, threshold, is_strict=is_strict(manifest))
        n_passing = int((scores > threshold).sum())
    # Where all that pass are selected, the shaded side of the threshold already shows them.
    if n_passing is None or n_selected < n_passing:
        label = f"{_kind(manifest)} ({n_selected:,})"
        axes.stairs(selected_counts, edges, color=STUDENT, linewidth=1.8, label=label)

    _scale_counts(axes, peaks)
    axes.legend(
        loc="upper left",
        ncols=4,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.4,
    )

    share = percent(n_selected / n_pool)
    finding = f"{n_selected:,} of {n_pool:,} pool images {_kind(manifest)} ({share})"
    evidence = describe_prior(class_prior)
    quality = _quality(is_selected, relevant)
    if quality is not None:
        evidence += f"; {quality}"
    set_title(figure, finding, evidence)
    return figure


# --- what a manifest selects ---


def selection_mask(pool_scores: pd.DataFrame, manifest: pd.DataFrame) -> np.ndarray:
    """Return (n,) bool: which pool images the rule selected, or draws more often than evenly."""
    pool_ids = manifest.loc[is_preferred(manifest), "id"]
    is_selected = pool_scores["id"].isin(pool_ids)
    return is_selected.to_numpy(bool)


def relevance(pool_scores: pd.DataFrame, pool_images: ImageStore) -> np.ndarray:
    """Return the truth as (n,) float64 in the order of the scores.

    1 is relevant, 0 is not relevant, and NaN is unknown.
    """
    index = pool_images.index
    if not index["relevant"].notna().any():
        return np.full(len(pool_scores), np.nan)
    # pandas' nullable Float64: a boolean column with missing values cannot become a float64.
    by_id = index.set_index("id")["relevant"].astype("Float64")
    truth = by_id.reindex(pool_scores["id"])
    return truth.to_numpy(dtype=np.float64, na_value=np.nan)


def score_threshold(manifest: pd.DataFrame, column: str) -> float | None:
    """Return the finite cut of the manifest's rule on that score column.

    None if the rule has no cut, or cuts another column.
    """
    rule = manifest.attrs.get("rule")
    threshold = manifest.attrs.get("threshold")
    if threshold is None or not has_threshold(rule) or column != ranked_by(rule):
        return None
    threshold = float(threshold)
    if not np.isfinite(threshold):
        return None
    return threshold


def ranked_by(rule: str | None) -> str:
    """Return the score column that the rule ranks by; the PU score if it ranks by none."""
    # A manifest may be of a rule that this version does not know.
    if rule not in RULES:
        return "pu_score"
    column = RULES[rule].ranked_by
    return column or "pu_score"


def has_threshold(rule: str | None) -> bool:
    """Return whether the rule cuts the scores; assumed of an unknown rule."""
    if rule not in RULES:
        return True
    return RULES[rule].has_threshold


def is_strict(manifest: pd.DataFrame) -> bool:
    """Return whether a score equal to the threshold does not pass."""
    criterion = CRITERIA.get(manifest.attrs.get("criterion") or "")
    return criterion is not None and criterion.strict_threshold is not None


# --- text ---


def _kind(manifest: pd.DataFrame) -> str:
    """Return what the images are that the rule preferred."""
    if prefers_images(manifest):
        return "drawn more often"
    return "selected"


def describe_prior(class_prior: Mapping[str, Any]) -> str:
    """Return the class prior with its interval and origin, as a phrase."""
    value = class_prior.get("value")
    if value is None:
        return "class prior unknown"
    lower = class_prior.get("lower")
    upper = class_prior.get("upper")
    if lower is not None and upper is not None and lower != upper:
        interval = f"({100 * lower:.1f}–{100 * upper:.1f} %)"
        return f"class prior estimated at {percent(value)} {interval}"
    if class_prior.get("method") == "given":
        return f"class prior {percent(value)} as given"
    return f"class prior {percent(value)}"


def _quality(is_selected: np.ndarray, relevant: np.ndarray) -> str | None:
    """Return precision and recall among the images of known truth; None if there are none."""
    is_known = ~np.isnan(relevant)
    if not is_known.any():
        return None

    is_counted = is_selected & is_known
    n_hits = float((relevant[is_counted] == 1).sum())
    n_selected = is_counted.sum()
    n_relevant = (relevant == 1).sum()
    # At least 1: a selection without a single image of known truth has a precision of 0.
    precision = percent(n_hits / max(1, n_selected))
    recall = percent(n_hits / max(1, n_relevant))
    return f"precision {precision}, recall {recall} by the hidden truth"


# --- drawing ---


def _populations(relevant: np.ndarray) -> list[_Population]:
    """Return the populations that have images, in drawing order: the relevant ones on top."""
    is_known = ~np.isnan(relevant)
    if is_known.any():
        unknown = _Population("truth unknown", _UNKNOWN, ~is_known)
    else:
        unknown = _Population("unlabeled", UNLABELED, ~is_known)
    populations = [
        _Population("not relevant", UNLABELED, relevant == 0.0),
        unknown,
        _Population("relevant", RELEVANT, relevant == 1.0),
    ]
    return [population for population in populations if population.mask.any()]


def _count(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(scores, edges)
    return counts


def _bin_edges(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return equal bins over all scores with one edge on the threshold.

    A bin across the threshold would be half selected.
    """
    low = float(scores.min())
    high = float(scores.max())
    usual_n_bins = np.sqrt(len(scores))
    n_bins = int(np.clip(usual_n_bins, 10, 60))
    width = (high - low) / n_bins or 1.0  # equal scores still need a bin with a width

    anchor = low
    if threshold is not None:
        anchor = threshold
    first = np.floor((low - anchor) / width)
    last = np.floor((high - anchor) / width) + 1
    positions = np.arange(first, last + 1)
    return anchor + width * positions


def _draw_population(
    axes: Axes, population: _Population, counts: np.ndarray, edges: np.ndarray
) -> None:
    color = population.color
    # All images count here; those without a finite score are in no bin.
    n_images = int(population.mask.sum())
    label = f"{population.name} ({n_images:,})"
    axes.stairs(counts, edges, fill=True, color=color, alpha=0.55, label=label)
    axes.stairs(counts, edges, color=darker(color), linewidth=1.1)


def _mark_threshold(axes: Axes, threshold: float, *, is_strict: bool) -> None:
    """Draw the threshold, shade the side that passes, and name the condition."""
    left, right = axes.get_xlim()
    has_room = right - threshold > 0.25 * (right - left)
    axes.axvline(threshold, color=INK, linewidth=1.3, linestyle=(0, (4, 2)))
    axes.axvspan(threshold, max(right, threshold), color=STUDENT, alpha=0.07, linewidth=0)
    axes.set_xlim(min(left, threshold), max(right, threshold))

    offset = 6
    alignment = "left"
    # The text goes to the other side where the shaded one is too narrow for it.
    if not has_room:
        offset = -6
        alignment = "right"
    sign = "≥"
    if is_strict:
        sign = ">"
    condition = f"F {sign} {threshold:.3g} passes →"
    axes.annotate(
        condition.replace("-", "−"),
        (threshold, 0.86),
        (offset, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha=alignment,
        va="top",
        fontsize=9,
        color=INK,
    )


def _scale_counts(axes: Axes, peaks: Sequence[int]) -> None:
    """Scale and label the axis of counts, with room for the legend above the highest peak.

    Args:
        axes: changed in place.
        peaks: the largest count of each histogram.
    """
    highest = max(peaks)
    lowest = min(peak for peak in peaks if peak > 0)
    # A small population would lie flat on a linear axis.
    if highest > 20 * max(1, lowest):
        axes.set_yscale("log")
        axes.set_ylim(0.7, highest * (highest / 0.7) ** 0.28)
        style_axes(axes, "PU score F(x)", "pool images per bin (log scale)")
    else:
        axes.set_ylim(0, highest * 1.22)
        style_axes(axes, "PU score F(x)", "pool images per bin")
        axes.yaxis.set_major_formatter("{x:,.0f}")
