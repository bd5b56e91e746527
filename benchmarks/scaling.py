"""Target 4: extraction and scoring of 64,000 to 1,000,000 images in flat memory and linear time.

    python -m benchmarks.scaling --plot FILE [--series memory.json] [--work FOLDER]

Each stage runs in a process of its own, as it does in a pipeline, and reports its peak memory and
CPU time. The network is tiny, so that the cost of everything around it shows. The goal is set for
anonymous memory (`RssAnon`): the resident size (`VmHWM`) includes pages of memory-mapped files,
which the kernel keeps while nobody else needs the memory, and takes back at no cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from benchmarks.harness import Measurement, Ratio, ratio
from benchmarks.scaling_pool import (
    N_CHANNELS,
    SIZE_PX,
    Shard,
    link_store,
    write_models,
    write_shard,
)
from benchmarks.scaling_stage import COMPUTE, STAGES, StageCost, run_in_process
from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import load_model
from pu_kd_pipeline.storage.sharded_table import ShardedTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = (64_000, 256_000, 1_000_000)
REPEATS = {64_000: 3}  # the other sizes run once
SHARD_SIZE = 50_000  # as in conf/base/parameters_data_ingestion.yml
COLORS = {"extraction": "#0072b2", "scoring": "#e69f00"}

Series = Sequence[Mapping[str, float | str]]
"""The mappings of `memory.json`, one per run of a stage."""


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 4 and write `memory.json`; the images are random."""
    folder = work / "scaling"
    pool = folder / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    try:
        write_models(folder)
        # Twenty shards are the largest pool; the last one joins it later.
        shards = [write_shard(pool, number, SHARD_SIZE) for number in range(21)]
        costs = measure_costs(pool, shards[:-1], folder)
        series = [asdict(cost) for cost in costs]
        text = json.dumps(series, indent=1)
        (work / "memory.json").write_text(text, encoding="utf-8")
        for stage in STAGES:
            yield _memory_row(stage, costs)
        for stage in STAGES:
            yield _time_row(stage, costs)
        yield _new_shard_row(pool, shards, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- memory and time by size ----------------------------------------------------------------------


def measure_costs(pool: Path, shards: Sequence[Shard], work: Path) -> list[StageCost]:
    """Return the cost of each stage for each size; the pools and their features stay in `work`."""
    costs = []
    for size in SIZES:
        # Pools share the shards of 50,000 images; the last one of a pool may be smaller.
        n_whole, rest = divmod(size, SHARD_SIZE)
        chosen = list(shards[:n_whole])
        if rest:
            chosen.append(write_shard(pool, n_whole, rest))
        store = work / f"pool_{size}"
        link_store(chosen, pool, store)
        # The smallest pool is repeated most: its run is short, and noise weighs most there.
        n_repeats = REPEATS.get(size, 1)
        for _ in range(n_repeats):
            for stage in STAGES:
                cost = run_in_process(stage, store, work)
                costs.append(cost)
    return costs


def _costs_of(costs: Sequence[StageCost], stage: str, n_images: int) -> list[StageCost]:
    of_stage = [cost for cost in costs if cost.stage == stage]
    return [cost for cost in of_stage if cost.n_images == n_images]


def _memory_row(stage: str, costs: Sequence[StageCost]) -> Measurement:
    small = _costs_of(costs, stage, SIZES[0])
    large = _costs_of(costs, stage, SIZES[-1])
    growths = []
    for large_cost in large:
        for small_cost in small:
            growth = large_cost.peak_mb / small_cost.peak_mb - 1
            growths.append(100 * growth)
    small_mb = statistics.median(cost.peak_mb for cost in small)
    large_mb = statistics.median(cost.peak_mb for cost in large)
    start_mb = small[0].start_mb
    small_resident_mb = max(cost.peak_resident_mb for cost in small)
    large_resident_mb = max(cost.peak_resident_mb for cost in large)
    return Measurement(
        "4",
        f"peak memory of {stage}, 1 million images over 64 thousand, growth",
        statistics.median(growths),
        min(growths),
        max(growths),
        "%",
        "<=",
        20.0,
        note=f"anonymous memory {small_mb:.0f} → {large_mb:.0f} MB, "
        f"{start_mb:.0f} of them Python and libraries; with pages of mapped files "
        f"{small_resident_mb:.0f} → {large_resident_mb:.0f} MB",
    )


def _time_row(stage: str, costs: Sequence[StageCost]) -> Measurement:
    costs_of_small = _costs_of(costs, stage, SIZES[0])
    costs_of_large = _costs_of(costs, stage, SIZES[-1])
    small = _seconds_per_image(costs_of_small)
    large = _seconds_per_image(costs_of_large)
    # Every run against every other: the sizes have different numbers of repeats.
    times = []
    for large_seconds in large:
        for small_seconds in small:
            times.append(large_seconds / small_seconds)
    small_us = 1e6 * statistics.median(small)
    large_us = 1e6 * statistics.median(large)
    what = f"CPU time an image of {stage}, 1 million images over 64 thousand"
    note = f"{small_us:.1f} → {large_us:.1f} µs an image"
    return _at_most(what, Ratio.of(times), 1.2, note)


def _seconds_per_image(costs: Sequence[StageCost]) -> list[float]:
    return [cost.cpu_seconds / cost.n_images for cost in costs]


def _at_most(what: str, cost: Ratio, goal: float, note: str) -> Measurement:
    return Measurement("4", what, cost.median, cost.low, cost.high, "x", "<=", goal, note=note)


# --- one more shard -------------------------------------------------------------------------------


def _new_shard_row(
    pool: Path, shards: Sequence[Shard], work: Path, repeats: int = 7
) -> Measurement:
    """Return the cost of extraction after a shard joined twenty, over that of this shard alone."""
    # The twenty shards of the largest pool have been extracted by `measure_costs`.
    new_shard = shards[-1]
    grown = f"pool_{SIZES[-1]}"
    link_store(shards, pool, work / grown)
    link_store([new_shard], pool, work / "alone")
    extract_grown = _extraction_of_new_shard(grown, new_shard, work)
    extract_alone = _extraction_of_new_shard("alone", new_shard, work)
    cost = ratio(extract_grown, extract_alone, repeats)
    what = "extraction after one shard joined twenty, over that of a pool of this shard alone "
    what += f"({SHARD_SIZE:,} images)"
    return _at_most(what, cost, 1.5, note="each time exactly one shard was made")


def _extraction_of_new_shard(store: str, new_shard: Shard, work: Path) -> Callable[[], None]:
    """Return a function that removes a shard's features and makes them again.

    It also checks that the extraction makes no other shard.
    """
    features = work / f"features_{store}"
    teacher = load_model(work / "teacher")
    made: list[str] = []

    def make(makers: ShardMakers, name: str) -> pa.Table:
        made.append(name)
        return makers[name]()

    def extract() -> None:
        shard_name = new_shard[0]
        for file in features.glob(f"{shard_name}-*.parquet"):
            file.unlink()
        made.clear()
        images = ImageStore.open(work / store)
        makers = feature_shards(images, teacher, COMPUTE)
        counted = {}
        for name in makers:
            counted[name] = partial(make, makers, name)
        table = ShardedTable.write(features, counted)
        last_name = table.names[-1]
        assert made == [last_name], f"{len(made)} shards were made for one that is new"

    return extract


# --- plot -----------------------------------------------------------------------------------------


def plot(path: Path, series: Series) -> None:
    """Draw peak memory against the number of images."""
    # matplotlib takes a second to import, and only plots need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    highest_mb = 0.0
    # Solid lines are what the goal is set for; dotted ones include pages of mapped files.
    for stage in STAGES:
        anonymous = _median_by_size(series, stage, "peak_mb")
        resident = _median_by_size(series, stage, "peak_resident_mb")
        color = COLORS[stage]
        _plot_curve(axes, anonymous, "o-", color, stage)
        _plot_curve(axes, resident, ":", color, f"{stage}, with mapped files")
        highest_mb = max(highest_mb, *anonymous.values(), *resident.values())
    # What memory would hold if the stages loaded the whole pool.
    sizes = sorted({float(cost["n_images"]) for cost in series})
    n_bytes = N_CHANNELS * SIZE_PX**2  # of an image, a byte per pixel and channel
    pixels_mb = [size * n_bytes / 1e6 for size in sizes]
    label = "the pool's pixels"
    axes.plot(sizes, pixels_mb, "--", color="#7f7f7f", linewidth=1.2, label=label)
    _decorate(axes, sizes, highest_mb)
    figure.savefig(path, dpi=150)


def _median_by_size(series: Series, stage: str, key: str) -> dict[float, float]:
    """Return number of images -> median over the repeats."""
    values: dict[float, list[float]] = {}
    for cost in series:
        if cost["stage"] == stage:
            n_images = float(cost["n_images"])
            of_size = values.setdefault(n_images, [])
            of_size.append(float(cost[key]))
    medians = {}
    for n_images in sorted(values):
        of_size = values[n_images]
        medians[n_images] = statistics.median(of_size)
    return medians


def _plot_curve(
    axes: Axes, peak_by_size: Mapping[float, float], style: str, color: str, label: str
) -> None:
    sizes = list(peak_by_size)
    peaks_mb = list(peak_by_size.values())
    axes.plot(sizes, peaks_mb, style, color=color, linewidth=1.6, label=label)


def _decorate(axes: Axes, sizes: Sequence[float], highest_mb: float) -> None:
    axes.set_xscale("log")
    tick_labels = [f"{size:,.0f}" for size in sizes]
    axes.set_xticks(sizes, tick_labels, minor=False)
    axes.minorticks_off()
    # Room for the legend above the curves.
    axes.set_ylim(0, 1.35 * highest_mb)
    axes.set_xlabel("images in the pool (16 × 16 pixels, gray)")
    axes.set_ylabel("peak memory of the process (MB)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)


def main() -> None:
    """Plot a series, which is measured first where none is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--plot", type=Path, required=True, help="where the plot goes")
    parser.add_argument(
        "--series", type=Path, help="a memory.json of an earlier run; without it, it is measured"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for 0.5 GB of images; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        file = options.series
        if file is None:
            work = options.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            for row in measure(None, work):
                line = f"{row.verdict:7} {row.what}: {row.value} {row.unit}"
                print(line, file=sys.stderr, flush=True)
            file = work / "memory.json"
        text = file.read_text(encoding="utf-8")
        series = json.loads(text)
        plot(options.plot, series)


if __name__ == "__main__":
    main()
