"""The contact sheet: the best, borderline and worst images of the pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pu_kd_pipeline.reporting.selection_figures import has_threshold, ranked_by, selection_mask
from pu_kd_pipeline.reporting.style import (
    DARK_ALERT,
    HEADER_IN,
    INK,
    MUTED,
    RELEVANT,
    STUDENT,
    WIDTH_IN,
    darker,
    new_figure,
    percent,
    set_title,
    shorten,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pu_kd_pipeline.images.store import ImageStore


IMAGES_PER_ROW = 10
SMALL_IMAGE_PX = 64  # up to this size pixels are shown as squares, not smoothed

_MARGIN_IN = 0.1
_COLUMN_IN = (WIDTH_IN - 2 * _MARGIN_IN) / IMAGES_PER_ROW
_IMAGE_IN = _COLUMN_IN - 0.08
_LINE_IN = 0.13
_HEADING_IN = 0.36
_GAP_IN = 0.06  # below each strip


@dataclass(frozen=True)
class RankedStrip:
    """One block of the contact sheet."""

    heading: str
    color: str
    rows: np.ndarray
    """int64 rows of the scores, in the order in which the images are shown."""

    @property
    def n_lines(self) -> int:
        """Number of lines of images."""
        return -(-len(self.rows) // IMAGES_PER_ROW)


@dataclass(frozen=True)
class _Line:
    """One line of text below an image."""

    text: str
    color: str
    weight: str = "normal"


@dataclass(frozen=True)
class _Tile:
    """One image with the text below it."""

    image: np.ndarray
    """(C, H, W) uint8."""
    confidence: str
    lines: list[_Line]


def plot_contact_sheet(
    manifest: pd.DataFrame,
    pool_scores: pd.DataFrame,
    pool_images: ImageStore,
    n_images: int,
    class_names: Sequence[str] | None = None,
    excluded_ids: Collection[str] = (),
) -> Figure:
    """Return the best, borderline and worst pool images with their score and the teacher's class.

    Borderline images are the nearest on both sides of the cut; for a rule without a cut, the middle
    of the ranking is shown instead. Images are ranked by the score column of the rule, see
    `ranked_by`.

    Args:
        manifest: the selected images, `id` and `origin`; attrs `rule`.
        pool_scores: `id`, `pu_score`, `teacher_class`, `teacher_confidence`,
            `teacher_log_odds`.
        pool_images: (n, C, H, W) uint8 by row; its index has `id` and, where known, `relevant`.
        n_images: number of images in each block, >= 1.
        class_names: names of the teacher's classes; without them, classes are numbered.
        excluded_ids: images that no rule may select, such as copies of test images. They are no
            borderline images, because the cut did not decide on them.
    """
    rule = manifest.attrs.get("rule")
    column = ranked_by(rule)
    scores = pool_scores[column].to_numpy(np.float64)
    is_selected = selection_mask(pool_scores, manifest)
    is_excluded = pool_scores["id"].isin(excluded_ids).to_numpy()
    strips = strips_of(scores, is_selected, is_excluded, rule, n_images)

    # An image may be in two strips of a small pool, and is read once.
    shown = np.unique(np.concatenate([strip.rows for strip in strips]))
    tiles = _tiles(pool_scores.iloc[shown], scores[shown], pool_images, class_names)
    n_text_lines = max(len(tile.lines) for tile in tiles)

    tile_of_row = dict(zip(shown.tolist(), tiles, strict=True))
    figure = _draw_strips(strips, tile_of_row, n_text_lines)

    score = "PU score"
    if column == "teacher_log_odds":
        score = "score (here the log odds of the teacher's class)"
    legend = f"below each image: {score}, the teacher's confidence and class"
    if n_text_lines > 2:
        legend += ", the hidden truth"
    set_title(figure, "Best, borderline and worst images of the pool", legend)
    return figure


# --- which images ---


def strips_of(
    scores: np.ndarray,
    is_selected: np.ndarray,
    is_excluded: np.ndarray,
    rule: str | None,
    n_images: int,
) -> list[RankedStrip]:
    """Return the strips that have images."""
    rows = np.flatnonzero(np.isfinite(scores))

    best = _highest(rows, scores, n_images)
    worst = _lowest(rows, scores, n_images)[::-1]
    strips = [RankedStrip("Best: the highest scores", INK, best)]
    if has_threshold(rule):
        decided = rows[~is_excluded[rows]]
        strips += _borderline_strips(decided, scores, is_selected, n_images)
    else:
        # Without a cut no image is borderline: random rules, for one, select anywhere.
        middle = _middle(rows, scores, n_images)
        strips.append(RankedStrip("Middle of the ranking (this rule has no cut)", INK, middle))
    strips.append(RankedStrip("Worst: the lowest scores", INK, worst))
    return [strip for strip in strips if len(strip.rows)]


def _borderline_strips(
    rows: np.ndarray, scores: np.ndarray, is_selected: np.ndarray, n_images: int
) -> list[RankedStrip]:
    """Return two strips of together n_images: the last on one side of the cut, the first beyond."""
    selected = rows[is_selected[rows]]
    left_out = rows[~is_selected[rows]]

    n_selected = (n_images + 1) // 2
    n_left_out = max(1, n_images - n_selected)
    last = _lowest(selected, scores, n_selected)[::-1]
    first = _highest(left_out, scores, n_left_out)
    return [
        RankedStrip("Borderline: the last that were selected", STUDENT, last),
        RankedStrip("Borderline: the first that were left out", DARK_ALERT, first),
    ]


def _middle(rows: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Return the n rows with scores nearest the median, highest first."""
    median = np.median(scores[rows])
    distance = np.abs(scores[rows] - median)
    middle = rows[np.argsort(distance, kind="stable")[:n]]
    return middle[np.argsort(-scores[middle], kind="stable")]


def _highest(rows: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Return the n rows with the highest scores, highest first."""
    return _first(rows, -scores[rows], n)


def _lowest(rows: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Return the n rows with the lowest scores, lowest first."""
    return _first(rows, scores[rows], n)


def _first(rows: np.ndarray, keys: np.ndarray, n: int) -> np.ndarray:
    """Return the n rows with the smallest keys, smallest first."""
    # Partitioned first, so that of a million scores only these n are sorted.
    if len(rows) > n:
        nearest = np.argpartition(keys, n - 1)[:n]
        rows = rows[nearest]
        keys = keys[nearest]
    return rows[np.argsort(keys, kind="stable")]


# --- what is written below them ---


def _tiles(
    table: pd.DataFrame,
    scores: np.ndarray,
    pool_images: ImageStore,
    class_names: Sequence[str] | None,
) -> list[_Tile]:
    """Return one tile per row of the table; no other image is read."""
    index = pool_images.index
    rows = np.flatnonzero(index["id"].isin(table["id"]).to_numpy())
    ids = index["id"].iloc[rows].tolist()
    # Only these rows: a pool of a million images does not fit into memory.
    images = dict(zip(ids, pool_images.read(rows.astype(np.int64)), strict=True))
    truths = _truths(index.iloc[rows])
    has_truth = bool(index["relevant"].notna().any())

    columns = [table["id"], scores, table["teacher_class"], table["teacher_confidence"]]
    tiles = []
    for identifier, score, teacher_class, confidence in zip(*columns, strict=True):
        name = shorten(_class_name(teacher_class, class_names), 13)
        lines = [
            _Line(f"{score:.2f}".replace("-", "−"), INK, "bold"),
            _Line(name, MUTED),
        ]
        if has_truth:
            lines.append(_truth_line(truths[identifier]))
        tiles.append(_Tile(images[identifier], percent(confidence, 0), lines))
    return tiles


def _truths(index: pd.DataFrame) -> dict[Any, bool | None]:
    """Return whether each image is relevant, by id; None where it is unknown."""
    relevant = index["relevant"]
    # As objects: pandas' own missing value raises an error where it is used as a condition.
    values = relevant.astype(object).where(relevant.notna(), None)
    return dict(zip(index["id"], values, strict=True))


def _truth_line(is_relevant: bool | None) -> _Line:
    if is_relevant is None:
        return _Line("unknown", MUTED)
    if is_relevant:
        return _Line("relevant", darker(RELEVANT))
    return _Line("not relevant", DARK_ALERT)


def _class_name(teacher_class: Any, class_names: Sequence[str] | None) -> str:
    index = int(teacher_class)
    if class_names is not None and 0 <= index < len(class_names):
        return str(class_names[index])
    return str(index)


# --- drawing ---


def _draw_strips(
    strips: Sequence[RankedStrip], tile_of_row: Mapping[int, _Tile], n_text_lines: int
) -> Figure:
    """Draw the strips below each other, in a figure as high as they need."""
    line_of_images_in = _COLUMN_IN + n_text_lines * _LINE_IN + 0.04
    n_lines = sum(strip.n_lines for strip in strips)
    headings_in = len(strips) * (_HEADING_IN + _GAP_IN)
    height_in = HEADER_IN + headings_in + n_lines * line_of_images_in

    # Without a layout: every tile has its place in inches already.
    figure = new_figure(height_in, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    top = HEADER_IN
    for strip in strips:
        axes.text(
            _MARGIN_IN,
            top + 0.24,
            strip.heading,
            fontsize=9.5,
            color=strip.color,
            weight="bold",
            va="baseline",
        )
        top += _HEADING_IN
        for place, row in enumerate(strip.rows.tolist()):
            line, column = divmod(place, IMAGES_PER_ROW)
            left = _MARGIN_IN + column * _COLUMN_IN
            _draw_tile(axes, tile_of_row[row], left, top + line * line_of_images_in)
        top += strip.n_lines * line_of_images_in + _GAP_IN

    # The axes count inches from the top left, so an image stays square for any number of strips.
    axes.set_xlim(0, WIDTH_IN)
    axes.set_ylim(height_in, 0)
    axes.set_aspect("auto")
    return figure


def _draw_tile(axes: Axes, tile: _Tile, left: float, top: float) -> None:
    """Draw an image into a square, keeping its shape, and its lines below it.

    Args:
        axes: axes in inches, from the top left.
        tile: the image and its text.
        left: left edge of the square, in inches.
        top: upper edge of the square, in inches.
    """
    _draw_image(axes, tile.image, left, top)
    axes.text(
        left + _IMAGE_IN,
        top + _IMAGE_IN + 1.05 * _LINE_IN,
        tile.confidence,
        fontsize=7,
        color=MUTED,
        ha="right",
    )
    for place, line in enumerate(tile.lines):
        # The first line is the score, which ranks the images.
        size = 7.5 if place == 0 else 7
        axes.text(
            left,
            top + _IMAGE_IN + (place + 1.05) * _LINE_IN,
            line.text,
            fontsize=size,
            color=line.color,
            weight=line.weight,
        )


def _draw_image(axes: Axes, image: np.ndarray, left: float, top: float) -> None:
    n_channels, height, width = image.shape
    longest = max(height, width)
    box_width = _IMAGE_IN * width / longest
    box_height = _IMAGE_IN * height / longest
    interpolation = "antialiased"
    if longest <= SMALL_IMAGE_PX:
        interpolation = "nearest"

    # Centered in its square.
    x = left + (_IMAGE_IN - box_width) / 2
    y = top + (_IMAGE_IN - box_height) / 2
    # matplotlib expects the channels last, and a gray image without that axis.
    picture = image[0] if n_channels == 1 else np.moveaxis(image[:3], 0, -1)
    axes.imshow(
        picture,
        extent=(x, x + box_width, y + box_height, y),
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation=interpolation,
    )
