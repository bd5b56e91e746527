"""Figures of a selection: scores and contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.reporting.style import (
    DARK_ALERT,
    HEADER_IN,
    INK,
    MUTED,
    RELEVANT,
    STUDENT,
    UNLABELED,
    WIDTH_IN,
    darker,
    new_figure,
    percent,
    set_title,
    shorten,
    style_axes,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pu_kd_pipeline.images.store import ImageStore


IMAGES_PER_ROW = 10
SMALL_IMAGE_PX = 64  # up to this size pixels are shown as squares, not smoothed


def plot_score_histogram(
    pool_scores: pd.DataFrame,
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    class_prior: Mapping[str, Any],
) -> Figure:
    """Return the histogram of the pool's PU scores, with the threshold and, where known, both true populations.

    The scores are binned, so a million of them cost no more ink than a hundred.

    Args:
        pool_scores: one row a pool image; `id`, `pu_score`.
        manifest: the kept images, `id` and `origin`; attrs `rule`, `criterion` and `threshold` (None: no cut).
        pool_images: its index carries `relevant`; null where the truth is unknown.
        class_prior: `value` in [0, 1], and where estimated `lower` and `upper`.

    Raises:
        ValueError: there is no finite score to draw.
    """
    scores = pool_scores["pu_score"].to_numpy(np.float64)
    is_finite = np.isfinite(scores)
    if not is_finite.any():
        raise ValueError("pool_scores holds no finite pu_score: there is no histogram to draw")
    is_selected, relevant = (
        selection_mask(pool_scores, manifest),
        relevance(pool_scores, pool_images),
    )
    threshold = score_threshold(manifest, "pu_score")
    edges = _bin_edges(scores[is_finite], threshold)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.histogram(scores[mask & is_finite], edges)[0]

    is_known = ~np.isnan(relevant)
    populations = [
        ("not relevant", UNLABELED, relevant == 0.0),
        (
            "truth unknown" if is_known.any() else "unlabeled",
            "#d9d9d9" if is_known.any() else UNLABELED,
            ~is_known,
        ),
        ("relevant", RELEVANT, relevant == 1.0),
    ]
    counted = [
        (name, color, count(mask), int(mask.sum()))
        for name, color, mask in populations
        if mask.any()
    ]
    figure = new_figure(4.3)
    axes = figure.add_subplot()
    for name, color, counts, n in counted:
        axes.stairs(counts, edges, fill=True, color=color, alpha=0.55, label=f"{name} ({n:,})")
        axes.stairs(counts, edges, color=darker(color), linewidth=1.1)
    n_selected, n_pool, kept = int(is_selected.sum()), len(scores), count(is_selected)
    axes.set_xlim(edges[0] - 0.5 * (edges[1] - edges[0]), edges[-1] + 0.5 * (edges[1] - edges[0]))
    if threshold is not None:
        _mark_threshold(axes, threshold, is_strict=_is_strict(manifest))
    if threshold is None or n_selected < int(
        (scores > threshold).sum()
    ):  # the manifest holds a draw, not all that passed
        axes.stairs(kept, edges, color=STUDENT, linewidth=1.8, label=f"selected ({n_selected:,})")

    peaks = [counts.max() for _, _, counts, _ in counted] + [kept.max()]
    is_log = max(peaks) > 20 * max(
        1, min(peak for peak in peaks if peak > 0)
    )  # else a small population lies flat
    if is_log:
        axes.set_yscale("log")
        axes.set_ylim(0.7, max(peaks) * (max(peaks) / 0.7) ** 0.28)
    else:
        axes.set_ylim(0, max(peaks) * 1.22)
    style_axes(axes, "PU score F(x)", "pool images per bin" + (" (log scale)" if is_log else ""))
    if not is_log:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(
        loc="upper left", ncols=4, frameon=False, fontsize=9, handlelength=1.2, columnspacing=1.4
    )

    evidence = [describe_prior(class_prior)]
    if is_known.any():
        n_hits = float((relevant[is_selected & is_known] == 1).sum())
        precision, recall = (
            n_hits / max(1, (is_selected & is_known).sum()),
            n_hits / max(1, (relevant == 1).sum()),
        )
        evidence.append(
            f"precision {percent(precision)}, recall {percent(recall)} by the hidden truth"
        )
    finding = f"{n_selected:,} of {n_pool:,} pool images selected ({percent(n_selected / n_pool)})"
    set_title(figure, finding, "; ".join(evidence))
    return figure


def plot_contact_sheet(
    manifest: pd.DataFrame,
    pool_scores: pd.DataFrame,
    pool_images: ImageStore,
    n_images: int,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Return the best, borderline and worst pool images with their score and the teacher's class.

    Borderline images lie nearest the cut on both of its sides; a rule without a cut shows the middle of the ranking.
    Images are ranked by the score that the rule ranks by, and by the PU score where it ranks by none.

    Args:
        manifest: the kept images, `id` and `origin`; attrs `rule`.
        pool_scores: `id`, `pu_score`, `teacher_class`, `teacher_confidence`.
        pool_images: (n, C, H, W) uint8 by row; its index carries `id` and, where known, `relevant`.
        n_images: images in each block, >= 1.
        class_names: names of the teacher's classes; their numbers without them.
    """
    rule = manifest.attrs.get("rule")
    column = _ranked_by(rule)
    scores = pool_scores[column].to_numpy(np.float64)
    strips = _contact_strips(scores, selection_mask(pool_scores, manifest), rule, n_images)
    shown = np.unique(np.concatenate([rows for _, _, rows in strips]))
    tiles = dict(
        zip(
            shown.tolist(),
            _tiles(pool_scores.iloc[shown], scores[shown], pool_images, class_names),
            strict=True,
        )
    )
    n_lines = max(len(tile.lines) for tile in tiles.values())

    side_in, line_in, heading_in, margin_in = (WIDTH_IN - 0.2) / IMAGES_PER_ROW, 0.13, 0.36, 0.1
    row_in = side_in + n_lines * line_in + 0.04
    n_rows = sum(-(-len(rows) // IMAGES_PER_ROW) for _, _, rows in strips)
    height_in = HEADER_IN + len(strips) * (heading_in + 0.06) + n_rows * row_in
    figure = new_figure(height_in, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    top = HEADER_IN
    for heading, color, rows in strips:
        axes.text(
            margin_in, top + 0.24, heading, fontsize=9.5, color=color, weight="bold", va="baseline"
        )
        top += heading_in
        for place, row in enumerate(rows.tolist()):
            corner = (
                margin_in + place % IMAGES_PER_ROW * side_in,
                top + place // IMAGES_PER_ROW * row_in,
            )
            _draw_tile(axes, tiles[row], corner, side_in - 0.08, line_in)
        top += -(-len(rows) // IMAGES_PER_ROW) * row_in + 0.06
    axes.set_xlim(0, WIDTH_IN)  # inches, so that an image stays square whatever the number of rows
    axes.set_ylim(height_in, 0)
    axes.set_aspect("auto")
    score = (
        "score (here the teacher's confidence)" if column == "teacher_confidence" else "PU score"
    )
    legend = (
        f"below each image: {score}, the teacher's confidence and class"
        + ", the hidden truth" * (n_lines > 2)
    )
    set_title(figure, "Best, borderline and worst images of the pool", legend)
    return figure


def selection_mask(pool_scores: pd.DataFrame, manifest: pd.DataFrame) -> np.ndarray:
    """Return (n,) bool: which pool images the manifest keeps."""
    return pool_scores["id"].isin(manifest.loc[manifest["origin"] == "pool", "id"]).to_numpy(bool)


def relevance(pool_scores: pd.DataFrame, pool_images: ImageStore) -> np.ndarray:
    """Return (n,) float64 in the order of the scores: 1 relevant, 0 not relevant, NaN where the truth is unknown."""
    index = pool_images.index
    if not index["relevant"].notna().any():
        return np.full(len(pool_scores), np.nan)
    truth = index.set_index("id")["relevant"].astype("Float64").reindex(pool_scores["id"])
    return truth.to_numpy(dtype=np.float64, na_value=np.nan)


def score_threshold(manifest: pd.DataFrame, column: str) -> float | None:
    """Return the finite cut of the manifest's rule on that score column; None where it cuts elsewhere or not at all."""
    rule, threshold = manifest.attrs.get("rule"), manifest.attrs.get("threshold")
    if (
        threshold is None
        or not _has_threshold(rule)
        or column != _ranked_by(rule)
        or not np.isfinite(float(threshold))
    ):
        return None
    return float(threshold)


def _ranked_by(rule: str | None) -> str:
    """Return the score column that a manifest's rule ranks by, the PU score where it ranks by none or is not known."""
    record = RULES.get(rule) if rule else None
    if record is None or record.ranked_by is None:
        return "pu_score"
    return record.ranked_by


def _has_threshold(rule: str | None) -> bool:
    """Return whether a manifest's rule cuts; one that is not known is taken by its threshold."""
    record = RULES.get(rule) if rule else None
    return record is None or record.has_threshold


def _is_strict(manifest: pd.DataFrame) -> bool:
    """Return whether the score of the threshold itself does not pass."""
    criterion = CRITERIA.get(manifest.attrs.get("criterion") or "")
    return criterion is not None and criterion.strict_threshold is not None


def describe_prior(class_prior: Mapping[str, Any]) -> str:
    """Return the class prior with its interval and origin, as a phrase."""
    value, lower, upper = (class_prior.get(key) for key in ("value", "lower", "upper"))
    if value is None:
        return "class prior unknown"
    if lower is None or upper is None or lower == upper:
        return f"class prior {percent(value)}" + (
            " as given" if class_prior.get("method") == "given" else ""
        )
    return f"class prior estimated at {percent(value)} ({100 * lower:.1f}–{100 * upper:.1f} %)"


def _bin_edges(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return equal bins over all scores with one edge on the threshold, so that no bin is half selected."""
    low, high = float(scores.min()), float(scores.max())
    n_bins = int(np.clip(np.sqrt(len(scores)), 10, 60))
    width = (high - low) / n_bins or 1.0
    anchor = threshold if threshold is not None else low
    first, last = np.floor((low - anchor) / width), np.floor((high - anchor) / width) + 1
    return anchor + width * np.arange(first, last + 1)


def _mark_threshold(axes: Axes, threshold: float, *, is_strict: bool) -> None:
    left, right = axes.get_xlim()
    axes.axvline(threshold, color=INK, linewidth=1.3, linestyle=(0, (4, 2)))
    axes.axvspan(threshold, max(right, threshold), color=STUDENT, alpha=0.07, linewidth=0)
    axes.set_xlim(min(left, threshold), max(right, threshold))
    has_room = right - threshold > 0.25 * (right - left)
    axes.annotate(
        f"F {'>' if is_strict else '≥'} {threshold:.3g} passes →".replace("-", "−"), (threshold, 0.86),
        (6 if has_room else -6, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="left" if has_room else "right", va="top", fontsize=9, color=INK,
    )  # fmt: skip


def _contact_strips(
    scores: np.ndarray, is_selected: np.ndarray, rule: str | None, n_images: int
) -> list[tuple[str, str, np.ndarray]]:
    """Return heading, color and score rows of each strip of the contact sheet."""
    rows = np.flatnonzero(np.isfinite(scores))
    best, worst = (
        _extreme(rows, scores, n_images, highest=True),
        _extreme(rows, scores, n_images, highest=False)[::-1],
    )
    strips = [("Best: the highest scores", INK, best)]
    if not _has_threshold(rule):
        middle = rows[
            np.argsort(np.abs(scores[rows] - np.median(scores[rows])), kind="stable")[:n_images]
        ]
        middle = middle[np.argsort(-scores[middle], kind="stable")]
        strips.append(("Middle of the ranking (this rule has no cut)", INK, middle))
    else:
        kept, left = rows[is_selected[rows]], rows[~is_selected[rows]]
        n_kept = (n_images + 1) // 2
        last = _extreme(kept, scores, n_kept, highest=False)[::-1]
        first = _extreme(left, scores, max(1, n_images - n_kept), highest=True)
        strips.append(("Borderline: the last that were selected", STUDENT, last))
        strips.append(("Borderline: the first that were left out", DARK_ALERT, first))
    strips.append(("Worst: the lowest scores", INK, worst))
    return [strip for strip in strips if len(strip[2])]


def _extreme(rows: np.ndarray, scores: np.ndarray, n: int, *, highest: bool) -> np.ndarray:
    """Return the n rows with the most extreme scores, most extreme first, without sorting a million others."""
    key = -scores[rows] if highest else scores[rows]
    if len(rows) > n:
        nearest = np.argpartition(key, n - 1)[:n]
        rows, key = rows[nearest], key[nearest]
    return rows[np.argsort(key, kind="stable")]


@dataclass(frozen=True)
class _Tile:
    """One image of the contact sheet, the teacher's confidence, and the lines below it: text, color, weight."""

    image: np.ndarray
    confidence: str
    lines: list[tuple[str, str, str]]


def _tiles(
    table: pd.DataFrame,
    scores: np.ndarray,
    pool_images: ImageStore,
    class_names: Sequence[str] | None,
) -> list[_Tile]:
    """Return one tile a row of the table; only these images are read."""
    index = pool_images.index
    rows = np.flatnonzero(index["id"].isin(table["id"]).to_numpy())
    ids = index["id"].iloc[rows].tolist()
    images = dict(zip(ids, pool_images.read(rows.astype(np.int64)), strict=True))
    known = index["relevant"].iloc[rows]
    truth = dict(zip(ids, known.astype(object).where(known.notna(), None), strict=True))
    has_truth = bool(index["relevant"].notna().any())
    tiles = []
    facts = zip(
        table["id"], scores, table["teacher_class"], table["teacher_confidence"], strict=True
    )
    for identifier, score, teacher_class, confidence in facts:
        lines = [
            (f"{score:.2f}".replace("-", "−"), INK, "bold"),
            (shorten(_class_name(teacher_class, class_names), 13), MUTED, "normal"),
        ]
        if has_truth:
            lines.append(_truth_line(truth[identifier]))
        tiles.append(_Tile(images[identifier], percent(confidence, 0), lines))
    return tiles


def _draw_tile(
    axes: Axes, tile: _Tile, corner: tuple[float, float], side: float, line_in: float
) -> None:
    """Draw a (C, H, W) uint8 image into a square below the corner, keeping its shape, and its lines below it."""
    left, top = corner
    _, height, width = tile.image.shape
    box_width, box_height = side * width / max(height, width), side * height / max(height, width)
    x, y = left + (side - box_width) / 2, top + (side - box_height) / 2
    picture = tile.image[0] if tile.image.shape[0] == 1 else np.moveaxis(tile.image[:3], 0, -1)
    axes.imshow(
        picture, extent=(x, x + box_width, y + box_height, y), cmap="gray", vmin=0, vmax=255,
        interpolation="nearest" if max(height, width) <= SMALL_IMAGE_PX else "antialiased",
    )  # fmt: skip
    axes.text(
        left + side,
        top + side + 1.05 * line_in,
        tile.confidence,
        fontsize=7,
        color=MUTED,
        ha="right",
    )
    for place, (text, color, weight) in enumerate(tile.lines):
        size = 7.5 if place == 0 else 7
        axes.text(
            left,
            top + side + (place + 1.05) * line_in,
            text,
            fontsize=size,
            color=color,
            weight=weight,
        )


def _truth_line(relevant: bool | None) -> tuple[str, str, str]:
    if relevant is None:
        return "unknown", MUTED, "normal"
    return (
        ("relevant", darker(RELEVANT), "normal")
        if relevant
        else ("not relevant", DARK_ALERT, "normal")
    )


def _class_name(teacher_class: Any, class_names: Sequence[str] | None) -> str:
    index = int(teacher_class)
    return (
        str(class_names[index])
        if class_names is not None and 0 <= index < len(class_names)
        else str(index)
    )
