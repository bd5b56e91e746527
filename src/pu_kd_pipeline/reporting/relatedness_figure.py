"""What relatedness says of a pool, as one figure: which indicator ranks it how well, and which images are drawn."""

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

MAX_SOURCES = 6  # more columns and histograms than this cannot be read: the largest are shown
_BLOCKS = {
    "logits": LOGIT_INDICATORS,
    "last layer": LATENT_INDICATORS,
    "BatchNorm": BATCHNORM_INDICATORS,
}
_MOST_BINS, _MOST_POINTS = 60, 400


@dataclass(frozen=True)
class _Population:
    """Some of the pool's images, shown as one histogram."""

    name: str
    color: str
    mask: np.ndarray


def plot_relatedness(
    relatedness: ShardedTable, pool_images: ImageStore, manifest: pd.DataFrame, auc: pd.DataFrame
) -> Figure:
    """Return the AUC of every indicator and source beside the histograms of the sum, and how often each sum is drawn.

    Without the truth the histograms are of whole sources, and there is no AUC to show.

    Args:
        relatedness: the table of the pool, `one_class_sum` and the indicators.
        pool_images: its index carries `source` and `relevant`; null where the truth is unknown.
        manifest: `id` and `sampling_probability` of the pool images that are drawn; attrs `rule`,
            `effective_sample_size`.
        auc: of `indicator_auc`; empty where the truth is unknown.
    """
    probabilities = pd.Series(manifest["sampling_probability"].to_numpy(), index=manifest["id"])
    draws = probabilities.reindex(pool_images.index["id"], fill_value=0.0).to_numpy()
    sums = relatedness.arrays(ONE_CLASS_SUM)
    populations, relevant = _populations(pool_images), known_relevance(pool_images)
    ratios = [1.0] * len(populations) + [1.3]  # the last panel is how often they are drawn
    if len(auc):
        figure = new_figure(max(1.6 + 0.25 * auc["indicator"].nunique(), 1.2 + 0.7 * len(ratios)))
        n_columns = len(_columns(auc))
        halves = figure.add_gridspec(1, 2, width_ratios=(0.5 + 0.7 * n_columns, 7))
        _heat_map(figure.add_subplot(halves[0]), auc)
        grid: GridSpec | GridSpecFromSubplotSpec = halves[1].subgridspec(
            len(ratios), 1, height_ratios=ratios
        )
    else:
        figure = new_figure(1.2 + 0.8 * len(ratios))
        grid = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
    panels = [figure.add_subplot(grid[row]) for row in range(len(ratios))]
    _histograms(panels[:-1], populations, sums, draws)
    is_drawn = draws > 0  # copies of test images are not
    _times_as_often(panels[-1], sums[is_drawn], draws[is_drawn])
    for panel in panels[:-1]:
        panel.sharex(panels[-1])
        panel.tick_params(axis="x", labelbottom=False, length=0)
    set_title(figure, *_finding(manifest, auc, relevant, draws))
    return figure


def _populations(pool_images: ImageStore) -> list[_Population]:
    """Return the relevant images and the irrelevant ones of each source, or the sources where the truth is unknown."""
    relevant, sources = known_relevance(pool_images), pool_images.index["source"].to_numpy()
    shown = []
    others = np.ones(len(sources), dtype=bool)
    if relevant is not None and relevant.any():
        shown.append(_Population("relevant", RELEVANT, relevant))
        others = ~relevant
    names = pd.Series(sources[others]).value_counts().index.tolist()
    if shown and len(names) == 1:
        return [*shown, _Population("not relevant", UNLABELED, others)]
    shown += [
        _Population(str(name), UNLABELED, others & (sources == name))
        for name in names[:MAX_SOURCES]
    ]
    if rest := names[MAX_SOURCES:]:
        shown.append(_Population(f"{len(rest)} others", UNLABELED, others & np.isin(sources, rest)))
    return shown


def _finding(
    manifest: pd.DataFrame, auc: pd.DataFrame, relevant: np.ndarray | None, draws: np.ndarray
) -> tuple[str, str]:
    rule, n = str(manifest.attrs["rule"]).capitalize(), len(manifest)
    width = f"{manifest.attrs['effective_sample_size']:,.0f} of {n:,}"
    if relevant is None or auc.empty:
        share = None if relevant is None else percent(relevant.mean())
        known = (
            f"{share} of them are relevant" if share else "which of them are relevant is not known"
        )
        return f"{rule} sampling is as wide as {width} pool images", known
    whole = auc[auc["source"].isna()].set_index("indicator")["auc"]
    best = str(whole.drop(ONE_CLASS_SUM).idxmax())
    of_draws, of_pool = percent(draws[relevant].sum()), percent(relevant.mean())
    evidence = (
        f"AUC {whole[ONE_CLASS_SUM]:.3f} by 1C-Sum, {whole[best]:.3f} by the best indicator, {_label(best)}; "
        f"effective sample size {width}"
    )
    return f"{rule} sampling draws {of_draws} relevant images from a pool with {of_pool}", evidence


def _label(indicator: str) -> str:
    """Return an indicator as the paper writes it."""
    return (
        "1C-Sum"
        if indicator == ONE_CLASS_SUM
        else indicator.replace("_plus", "+").replace("_", "-")
    )


# --- AUC --------------------------------------------------------------------------------------------------------------


def _columns(auc: pd.DataFrame) -> list[str]:
    """Return the columns of the heat map: "" for the whole pool, then the largest sources if there are several."""
    sizes = (
        auc.dropna(subset="source").drop_duplicates("source").set_index("source")["n_irrelevant"]
    )
    largest = sizes.sort_values(ascending=False, kind="stable").index[:MAX_SOURCES].tolist()
    return ["", *largest] if len(sizes) > 1 else [""]


def _heat_map(axes: Axes, auc: pd.DataFrame) -> None:
    """Draw a cell for each indicator and source, the sum first, colored by how far its AUC is from chance."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("auc", [ALERT, "#f7f7f7", RELEVANT])
    table = auc.assign(source=auc["source"].fillna("")).pivot(
        index="indicator", columns="source", values="auc"
    )
    columns = _columns(auc)
    top, places, names = 0.0, list[float](), list[str]()
    for title, indicators in {"": (ONE_CLASS_SUM,), **_BLOCKS}.items():
        block = [name for name in indicators if name in table.index]
        if not block:
            continue
        top += 0.75 * bool(title)
        values = table.loc[block, columns].to_numpy()
        extent = (-0.5, len(columns) - 0.5, top + len(block), top)
        axes.imshow(
            values,
            cmap=colors,
            vmin=0,
            vmax=1,
            extent=extent,
            aspect="auto",
            interpolation="nearest",
        )
        axes.text(-0.5, top - 0.12, title, fontsize=8, color=MUTED, va="bottom")
        for row, of_row in enumerate(values):
            for column, value in enumerate(of_row):
                axes.text(
                    column, top + row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=INK,
                    weight="normal" if title else "bold",
                )  # fmt: skip
        places += [top + row + 0.5 for row in range(len(block))]
        names += block
        top += len(block)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(top, 0)
    axes.set_yticks(places, [_label(name) for name in names])
    titles = [shorten(name or "all", 14) for name in columns]
    is_long = max(len(title) for title in titles) > 8
    axes.set_xticks(
        range(len(columns)),
        titles,
        rotation=30 if is_long else 0,
        ha="left" if is_long else "center",
    )
    axes.tick_params(
        length=0, labelsize=9, top=False, labeltop=True, bottom=False, labelbottom=False
    )
    axes.spines[:].set_visible(False)
    n_hidden = auc["source"].nunique() - MAX_SOURCES
    hidden = f", {n_hidden} sources not shown" if n_hidden > 0 else ""
    axes.set_xlabel(f"AUC (chance: 0.5){hidden}", fontsize=9.5, color=INK)


# --- sums and draws ---------------------------------------------------------------------------------------------------


def _histograms(
    panels: list[Axes], populations: list[_Population], sums: np.ndarray, draws: np.ndarray
) -> None:
    """Draw a histogram of the sum for each population, each to its own peak, with the first one's outline in all."""
    n_bins = int(np.clip(np.sqrt(len(sums)), 10, _MOST_BINS))
    low, high = float(sums.min()), float(sums.max())
    edges = np.linspace(low, high if high > low else low + 1.0, n_bins + 1)
    counts = [np.histogram(sums[population.mask], edges)[0] for population in populations]
    for axes, population, counted in zip(panels, populations, counts, strict=True):
        axes.stairs(counted / counted.max(), edges, fill=True, color=population.color, alpha=0.6)
        axes.stairs(counted / counted.max(), edges, color=darker(population.color), linewidth=1.1)
        if populations[0].name == "relevant" and population is not populations[0]:
            axes.stairs(counts[0] / counts[0].max(), edges, color=RELEVANT, linewidth=1.2)
        style_axes(axes, "", "", grid="x")
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_ylim(0, 1.08)
        shares = f"{percent(population.mask.mean())} of pool, {percent(draws[population.mask].sum())} of draws"
        color = INK if population.color == UNLABELED else darker(population.color)
        axes.set_title(
            shorten(population.name, 18), loc="left", fontsize=9, weight="bold", color=color, pad=3
        )
        axes.set_title(shares, loc="right", fontsize=9, color=INK, pad=3)


def _times_as_often(axes: Axes, sums: np.ndarray, draws: np.ndarray) -> None:
    """Draw how often an image of that sum is drawn, in times of uniform sampling."""
    order = np.argsort(sums, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, _MOST_POINTS).astype(int))]
    times = len(sums) * draws[shown]
    lowest, highest = min(0.5, times.min()), max(2.0, times.max())
    place = np.log(1 / lowest) / np.log(highest / lowest)  # of uniform sampling, on the axis
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
    axes.set_yticks([lowest, *([1.0] if 0.25 < place < 0.75 else []), highest])
    axes.yaxis.set_major_formatter(lambda x, _: f"{x:,.0f}×" if x >= 10 else f"{x:.2g}×")
    axes.minorticks_off()
    style_axes(axes, "1C-Sum, less related →", "drawn", grid="x")
