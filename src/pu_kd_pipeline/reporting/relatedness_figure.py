"""The figure of a pool's relatedness: how well indicators rank it, and which images are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.learning.relatedness.indicators import (
    BATCHNORM_INDICATORS,
    LATENT_INDICATORS,
    LOGIT_INDICATORS,
)
from pu_kd_pipeline.reporting.style import (
    ALERT,
    INK,
    MUTED,
    RELEVANT,
    STUDENT,
    UNLABELED,
    darker,
    new_figure,
    percent,
    set_title,
    shorten,
    style_axes,
)
from pu_kd_pipeline.selection.relatedness import ONE_CLASS_SUM, known_relevance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec

    from pu_kd_pipeline.images.store import ImageStore
    from pu_kd_pipeline.storage.sharded_table import ShardedTable

MAX_SOURCES = 6  # more columns and histograms cannot be read: the largest sources are shown

# Blocks of rows of the heat map by title. The sum stands above them, without a title.
_BLOCKS: dict[str, tuple[str, ...]] = {
    "": (ONE_CLASS_SUM,),
    "logits": LOGIT_INDICATORS,
    "last layer": LATENT_INDICATORS,
    "BatchNorm": BATCHNORM_INDICATORS,
}
_WHOLE_POOL = ""  # the column of the heat map that counts all sources
_MAX_BINS = 60
_MAX_POINTS = 400  # of the curve: a million images need no more


@dataclass(frozen=True)
class _Population:
    """A part of the pool, shown as one histogram."""

    name: str
    color: str
    mask: np.ndarray
    """(n,) bool over the pool images."""


def plot_relatedness(
    relatedness: ShardedTable, pool_images: ImageStore, manifest: pd.DataFrame, auc: pd.DataFrame
) -> Figure:
    """Return the AUC of every indicator, histograms of the sum, and how often each sum is drawn.

    Where the truth is unknown, there is no AUC, and the histograms show whole sources.

    Args:
        relatedness: the pool's table, with `one_class_sum` and the indicators.
        pool_images: its index has `source` and `relevant`; null where the truth is unknown.
        manifest: `id` and `sampling_probability` of the pool images that can be drawn; attrs
            `rule`, `effective_sample_size`.
        auc: result of `indicator_auc`; empty where the truth is unknown.
    """
    probabilities = pd.Series(manifest["sampling_probability"].to_numpy(), index=manifest["id"])
    draws = probabilities.reindex(pool_images.index["id"], fill_value=0.0).to_numpy()
    sums = relatedness.arrays(ONE_CLASS_SUM)
    populations = _populations(pool_images)

    figure, panels = _panels(auc, n_histograms=len(populations))
    *histograms, sampling = panels
    _draw_histograms(histograms, populations, sums, draws)
    # Copies of test images are never drawn, and a logarithmic axis has no place for zero.
    is_drawn = draws > 0
    _draw_sampling(sampling, sums[is_drawn], draws[is_drawn])

    for panel in histograms:
        panel.sharex(sampling)
        panel.tick_params(axis="x", labelbottom=False, length=0)

    finding, evidence = _finding(manifest, auc, known_relevance(pool_images), draws)
    set_title(figure, finding, evidence)
    return figure


def _panels(auc: pd.DataFrame, n_histograms: int) -> tuple[Figure, list[Axes]]:
    """Return the figure, its heat map drawn, with empty axes: histograms, and the sampling last."""
    ratios = [1.0] * n_histograms + [1.3]  # the sampling panel has an axis below it
    n_rows = len(ratios)
    grid: GridSpec | GridSpecFromSubplotSpec

    if auc.empty:
        figure = new_figure(1.2 + 0.8 * n_rows)
        grid = figure.add_gridspec(n_rows, 1, height_ratios=ratios)
    else:
        n_indicators = auc["indicator"].nunique()
        heat_map_height_in = 1.6 + 0.25 * n_indicators
        panels_height_in = 1.2 + 0.7 * n_rows
        figure = new_figure(max(heat_map_height_in, panels_height_in))

        heat_map_width = 0.5 + 0.7 * len(_columns(auc))
        halves = figure.add_gridspec(1, 2, width_ratios=(heat_map_width, 7))
        _draw_heat_map(figure.add_subplot(halves[0]), auc)
        grid = halves[1].subgridspec(n_rows, 1, height_ratios=ratios)

    panels = [figure.add_subplot(grid[row]) for row in range(n_rows)]
    return figure, panels


def _populations(pool_images: ImageStore) -> list[_Population]:
    """Return the relevant images and the others by source; without the truth all by source."""
    relevant = known_relevance(pool_images)
    sources = pool_images.index["source"].to_numpy()
    shown = []
    others = np.ones(len(sources), dtype=bool)
    if relevant is not None and relevant.any():
        shown.append(_Population("relevant", RELEVANT, relevant))
        others = ~relevant

    names = pd.Series(sources[others]).value_counts().index.tolist()
    if shown and len(names) == 1:
        shown.append(_Population("not relevant", UNLABELED, others))
        return shown

    for name in names[:MAX_SOURCES]:
        is_of_source = others & (sources == name)
        shown.append(_Population(str(name), UNLABELED, is_of_source))

    # The largest come first, so that what is merged into one histogram is the smallest.
    rest = names[MAX_SOURCES:]
    if rest:
        is_rest = others & np.isin(sources, rest)
        shown.append(_Population(f"{len(rest)} others", UNLABELED, is_rest))
    return shown


def _finding(
    manifest: pd.DataFrame, auc: pd.DataFrame, relevant: np.ndarray | None, draws: np.ndarray
) -> tuple[str, str]:
    """Return finding and evidence of the title."""
    rule = str(manifest.attrs["rule"]).capitalize()
    width = f"{manifest.attrs['effective_sample_size']:,.0f} of {len(manifest):,}"
    if relevant is None or auc.empty:
        evidence = "which of them are relevant is not known"
        if relevant is not None:
            evidence = f"{percent(relevant.mean())} of them are relevant"
        return f"{rule} sampling is as wide as {width} pool images", evidence

    # A row without a source counts the irrelevant images of all sources.
    whole_pool = auc[auc["source"].isna()].set_index("indicator")["auc"]
    best = str(whole_pool.drop(ONE_CLASS_SUM).idxmax())
    share_drawn = percent(draws[relevant].sum())
    share_of_pool = percent(relevant.mean())
    evidence = (
        f"AUC {whole_pool[ONE_CLASS_SUM]:.3f} by 1C-Sum, "
        f"{whole_pool[best]:.3f} by the best indicator, {_label(best)}; "
        f"effective sample size {width}"
    )
    finding = (
        f"{rule} sampling draws {share_drawn} relevant images from a pool with {share_of_pool}"
    )
    return finding, evidence


def _label(indicator: str) -> str:
    """Return an indicator as the paper writes it."""
    if indicator == ONE_CLASS_SUM:
        return "1C-Sum"
    return indicator.replace("_plus", "+").replace("_", "-")


# --- AUC ---


def _columns(auc: pd.DataFrame) -> list[str]:
    """Return the columns of the heat map: the whole pool, then the largest of several sources."""
    per_source = auc.dropna(subset="source").drop_duplicates("source")
    sizes = per_source.set_index("source")["n_irrelevant"]
    if len(sizes) <= 1:
        return [_WHOLE_POOL]  # one source is the whole pool: its column would be the same again
    by_size = sizes.sort_values(ascending=False, kind="stable")
    return [_WHOLE_POOL, *by_size.index[:MAX_SOURCES]]


def _draw_heat_map(axes: Axes, auc: pd.DataFrame) -> None:
    """Draw one cell per indicator and source, colored by how far its AUC is from chance."""
    columns = _columns(auc)

    by_source = auc.assign(source=auc["source"].fillna(_WHOLE_POOL))
    table = by_source.pivot(index="indicator", columns="source", values="auc")

    top = 0.0
    places: list[float] = []
    names: list[str] = []
    for title, indicators in _BLOCKS.items():
        # A teacher without BatchNorm, for one, lacks a whole block.
        block = [name for name in indicators if name in table.index]
        if not block:
            continue
        if title:
            top += 0.75
        _draw_block(axes, table.loc[block, columns].to_numpy(), top, title)
        places.extend(top + row + 0.5 for row in range(len(block)))
        names.extend(_label(name) for name in block)
        top += len(block)

    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(top, 0)
    axes.set_yticks(places, names)
    _label_columns(axes, columns)

    n_hidden = auc["source"].nunique() - MAX_SOURCES
    x_label = "AUC (chance: 0.5)"
    if n_hidden > 0:
        x_label += f", {n_hidden} sources not shown"
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)


def _draw_block(axes: Axes, values: np.ndarray, top: float, title: str) -> None:
    """Draw the cells of a block from its (rows, columns) AUC values below `top`, and its title."""
    from matplotlib.colors import LinearSegmentedColormap

    n_rows, n_columns = values.shape
    axes.imshow(
        values,
        cmap=LinearSegmentedColormap.from_list("auc", [ALERT, "#f7f7f7", RELEVANT]),
        vmin=0,
        vmax=1,
        extent=(-0.5, n_columns - 0.5, top + n_rows, top),
        aspect="auto",
        interpolation="nearest",
    )
    axes.text(
        -0.5,
        top - 0.12,
        title,
        fontsize=8,
        color=MUTED,
        va="bottom",
    )
    weight = "normal" if title else "bold"  # the sum is what the sampling uses
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            top + row + 0.5,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=8.5,
            color=INK,
            weight=weight,
        )


def _label_columns(axes: Axes, columns: list[str]) -> None:
    """Write the names of the columns above the heat map, slanted where one of them is long."""
    titles = [shorten(name or "all", 14) for name in columns]
    places = range(len(columns))
    if max(len(title) for title in titles) > 8:
        axes.set_xticks(places, titles, rotation=30, ha="left")
    else:
        axes.set_xticks(places, titles, rotation=0, ha="center")

    axes.tick_params(
        length=0, labelsize=9, top=False, labeltop=True, bottom=False, labelbottom=False
    )
    axes.spines[:].set_visible(False)


# --- sums and draws ---


def _draw_histograms(
    panels: list[Axes], populations: list[_Population], sums: np.ndarray, draws: np.ndarray
) -> None:
    """Draw a histogram of the sum per population, with the outline of the relevant images in each.

    Populations differ in size by orders of magnitude: each histogram is scaled to its own peak.
    """
    edges = _histogram_edges(sums)
    counts = [np.histogram(sums[population.mask], edges)[0] for population in populations]
    heights = [counted / counted.max() for counted in counts]
    has_relevant = populations[0].name == "relevant"

    for place, axes in enumerate(panels):
        population = populations[place]
        axes.stairs(
            heights[place],
            edges,
            fill=True,
            color=population.color,
            alpha=0.6,
        )
        axes.stairs(heights[place], edges, color=darker(population.color), linewidth=1.1)
        if has_relevant and place > 0:
            axes.stairs(heights[0], edges, color=RELEVANT, linewidth=1.2)

        style_axes(axes, "", "", grid="x")
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_ylim(0, 1.08)
        _label_population(axes, population, draws)


def _histogram_edges(sums: np.ndarray) -> np.ndarray:
    usual_n_bins = np.sqrt(len(sums))
    n_bins = int(np.clip(usual_n_bins, 10, _MAX_BINS))

    low = float(sums.min())
    high = float(sums.max())
    if high <= low:
        # Equal sums still need bins with a width.
        high = low + 1.0
    return np.linspace(low, high, n_bins + 1)


def _label_population(axes: Axes, population: _Population, draws: np.ndarray) -> None:
    """Write a population's name and its shares of pool and draws above its histogram."""
    color = INK
    if population.color != UNLABELED:
        color = darker(population.color)
    name = shorten(population.name, 18)
    axes.set_title(
        name,
        loc="left",
        fontsize=9,
        weight="bold",
        color=color,
        pad=3,
    )

    share_of_pool = percent(population.mask.mean())
    share_of_draws = percent(draws[population.mask].sum())
    shares = f"{share_of_pool} of pool, {share_of_draws} of draws"
    axes.set_title(
        shares,
        loc="right",
        fontsize=9,
        color=INK,
        pad=3,
    )


def _draw_sampling(axes: Axes, sums: np.ndarray, draws: np.ndarray) -> None:
    """Draw how often an image with that sum is drawn, as a multiple of uniform sampling."""
    order = np.argsort(sums, kind="stable")
    ranks = np.linspace(0, len(order) - 1, _MAX_POINTS).astype(int)
    shown = order[np.unique(ranks)]

    times = len(sums) * draws[shown]
    lowest = min(0.5, times.min())
    highest = max(2.0, times.max())

    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.text(
        1,
        1,
        "uniform",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8,
        color=MUTED,
    )
    axes.plot(sums[shown], times, color=STUDENT, linewidth=1.8)
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.2, highest * 1.2)

    ticks = [lowest, highest]
    # The label of uniform sampling would overlap one of the two near either end of the axis.
    place_of_uniform = np.log(1 / lowest) / np.log(highest / lowest)
    if 0.25 < place_of_uniform < 0.75:
        ticks.insert(1, 1.0)
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(_multiple)
    axes.minorticks_off()
    style_axes(axes, "1C-Sum, less related →", "drawn", grid="x")


def _multiple(value: float, _position: float) -> str:
    """Return a tick label such as "0.5×" or "1,200×"."""
    if value >= 10:
        return f"{value:,.0f}×"
    return f"{value:.2g}×"
