"""nnPU and uPU on MNIST, even against odd digits: Kiryo et al. 2017 (arXiv:1703.00593), sec. 5.

    python -m benchmarks.nnpu_reference --images FOLDER --out FILE.md [--seeds 3]

1,000 positives with the 6-layer network and 100 positives with the 3-layer one; the unlabeled
images are all 60,000 training images. The steps are this project's own (`learning.pu_training`), so
a wrong sign anywhere shows here: uPU must overfit and nnPU must not. The curves (PNG) and the runs
(JSON lines) are written next to `--out`; runs that are there already are not repeated.

The paper counts layers of units: its 6-layer network is 784-300-300-300-300-1, its 3-layer one
784-100-1. Its code (github.com/kiryor/nnPUlearning) takes 100 epochs in two batches each, drawn
from positives and unlabeled together. Here every batch also has all positives, and the small
network gets smaller batches and so more updates.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.kept_runs import Result, add_run, read_runs
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_training import ScoreTraining, fit_scores, pu_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Estimator = Literal["nnpu", "upu"]
Digits = tuple[Tensor, np.ndarray]
"""(N, 784) float32 images in [0, 1], and whether each digit is even."""


@dataclass(frozen=True)
class Setting:
    """One experiment of the paper.

    Attributes:
        n_positive: number of labeled positives.
        n_layers: layers of units, input and output included.
        epochs: passes over the unlabeled images.
        unlabeled_batch: unlabeled images per batch.
    """

    n_positive: int
    n_layers: int
    epochs: int
    unlabeled_batch: int


SETTINGS = (Setting(1000, 6, 60, 30_000), Setting(100, 3, 100, 10_000))
ESTIMATORS: tuple[Estimator, ...] = ("nnpu", "upu")
HIDDEN = {6: (300, 300, 300, 300), 3: (100,)}
# Each batch of unlabeled images comes with all positives, up to so many.
MAX_POSITIVE_BATCH = 1000
NAMES = {"nnpu": "nnPU", "upu": "uPU"}
COLORS = {"nnpu": "#0072b2", "upu": "#e69f00"}


# --- one run --------------------------------------------------------------------------------------


def network(n_layers: int) -> nn.Module:
    """Return the paper's multilayer perceptron; the deep one has BatchNorm instead of biases."""
    is_deep = n_layers > 3
    sizes = [784, *HIDDEN[n_layers]]
    layers: list[nn.Module] = []
    # BatchNorm subtracts the mean, so that a bias before it would have no effect.
    for size_in, size_out in itertools.pairwise(sizes):
        layers.append(nn.Linear(size_in, size_out, bias=not is_deep))
        if is_deep:
            layers.append(nn.BatchNorm1d(size_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1), nn.Flatten(0))


def read_mnist(path: Path) -> Digits:
    """Return the images of a Parquet file, and whether each digit is even."""
    table = pq.read_table(path, columns=["image", "label"])
    images = []
    for content in table["image"]:
        image = Image.open(io.BytesIO(content.as_py()))
        images.append(np.asarray(image))
    pixels = torch.from_numpy(np.stack(images))
    is_even = table["label"].to_numpy() % 2 == 0
    return pixels.flatten(1).float() / 255, is_even


def run(train: Digits, test: Digits, estimator: Estimator, setting: Setting, seed: int) -> Result:
    """Train once and return the test error after each epoch, the last risks, and the CPU time."""
    start = time.process_time()
    unlabeled, is_even = train
    rng = np.random.default_rng(seed)
    chosen = rng.choice(np.flatnonzero(is_even), setting.n_positive, replace=False)
    positive = unlabeled[chosen]
    with seeded(seed):
        module = network(setting.n_layers)
    # The true share of even digits: the paper's experiments know the class prior.
    class_prior = float(is_even.mean())
    step = pu_step(module, class_prior=class_prior, estimator=estimator, beta=0.0, gamma=1.0)
    # Adam with L2 of 0.005, as in the paper.
    training = ScoreTraining(
        epochs=setting.epochs,
        positive_batch_size=min(setting.n_positive, MAX_POSITIVE_BATCH),
        unlabeled_batch_size=setting.unlabeled_batch,
        algorithm="adam",
        learning_rate=1e-3,
        momentum=0.9,
        weight_decay=5e-3,
        schedule="constant",
    )
    records = fit_scores(
        module,
        step,
        positive.__getitem__,
        unlabeled.__getitem__,
        n_positive=setting.n_positive,
        n_unlabeled=len(unlabeled),
        training=training,
        generator=torch.Generator().manual_seed(seed),
    )
    errors = []
    last_record = {}
    for record in records:
        errors.append(_test_error(module, test))
        last_record = record
    return {
        "estimator": estimator,
        "n_positive": setting.n_positive,
        "n_layers": setting.n_layers,
        "seed": seed,
        "epochs": setting.epochs,
        "test_error": errors[-1],
        "risk": last_record["risk"],
        "negative_risk": last_record["negative_risk"],
        "ascent_share": last_record["ascent_share"],
        "cpu_seconds": round(time.process_time() - start, 1),
        "test_errors": errors,
    }


def _test_error(module: nn.Module, test: Digits) -> float:
    images, is_even = test
    # BatchNorm must use its running statistics here, and the batch's in the next update.
    module.eval()
    with torch.inference_mode():
        predicted = (module(images) > 0).numpy()
    module.train()
    return round(float((predicted != is_even).mean()), 4)


# --- table and plot -------------------------------------------------------------------------------


def _results_of(results: list[Result], setting: Setting, estimator: Estimator) -> list[Result]:
    """Return the runs of a setting: their numbers of positives tell the settings apart."""
    chosen = []
    for result in results:
        if result["n_positive"] == setting.n_positive and result["estimator"] == estimator:
            chosen.append(result)
    return chosen


def table_of(results: list[Result]) -> str:
    """Return the results as a Markdown table, one row per setting and estimator."""
    header = "| positives | layers | epochs | batch | estimator | test error | last risk | seeds "
    header += "| CPU-s a run |"
    lines = [header, "| ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |"]
    for setting in SETTINGS:
        for estimator in ESTIMATORS:
            group = _results_of(results, setting, estimator)
            if group:
                lines.append(_table_row(setting, estimator, group))
    return "\n".join(lines)


def _table_row(setting: Setting, estimator: Estimator, group: list[Result]) -> str:
    errors = np.array([result["test_error"] for result in group], dtype=float)
    risk = np.mean([result["risk"] for result in group])
    seconds = np.mean([result["cpu_seconds"] for result in group])
    error = f"{errors.mean():.3f}"
    # One run has no standard deviation.
    if len(group) > 1:
        error += f" ± {errors.std(ddof=1):.3f}"
    return (
        f"| {setting.n_positive:,} | {setting.n_layers} | {setting.epochs} "
        f"| {setting.unlabeled_batch:,} | {estimator} | {error} | {risk:+.3f} "
        f"| {len(group)} | {seconds:.0f} |"
    )


def plot(results: list[Result], path: Path) -> None:
    """Draw the test error after each epoch: mean over seeds and one standard deviation."""
    # matplotlib takes a second to import, and only plots need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        for estimator in ESTIMATORS:
            group = _results_of(results, setting, estimator)
            if group:
                _plot_errors(axes, estimator, group)
        title = f"{setting.n_positive:,} positives, {setting.n_layers} layers"
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylim(0, 0.55)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    panels[0].set_ylabel("test error")
    figure.savefig(path, dpi=130)


def _plot_errors(axes: Axes, estimator: Estimator, group: list[Result]) -> None:
    errors = np.array([result["test_errors"] for result in group], dtype=float)
    epochs = np.arange(1, errors.shape[1] + 1)
    mean = errors.mean(axis=0)
    deviation = errors.std(axis=0)
    color = COLORS[estimator]
    axes.plot(epochs, mean, color=color, linewidth=1.6)
    lower = mean - deviation
    upper = mean + deviation
    axes.fill_between(epochs, lower, upper, color=color, alpha=0.2, linewidth=0)
    # The name stands at the end of its curve, instead of in a legend.
    label = f" {NAMES[estimator]} {mean[-1]:.3f}"
    end = (epochs[-1], mean[-1])
    axes.annotate(label, end, color=color, va="center", annotation_clip=False)


# --- all runs -------------------------------------------------------------------------------------


def run_missing(images: Path, n_seeds: int, file: Path) -> list[Result]:
    """Run what a JSON lines file lacks, add it there, and return all results."""
    train = read_mnist(images / "mnist_train.parquet")
    test = read_mnist(images / "mnist_test.parquet")
    results = read_runs(file)
    done = {(r["estimator"], r["n_positive"], r["seed"], r["epochs"]) for r in results}
    for seed, setting, estimator in itertools.product(range(n_seeds), SETTINGS, ESTIMATORS):
        if (estimator, setting.n_positive, seed, setting.epochs) in done:
            continue
        result = run(train, test, estimator, setting, seed)
        results.append(result)
        print(json.dumps(result), flush=True)
        # Written after every run: one takes minutes, and an interrupted command resumes.
        add_run(file, result)
    return results


def main() -> None:
    """Run what is missing, print the table, and draw the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images",
        default=os.environ.get("PU_KD_DATA"),
        help="folder with mnist_{train,test}.parquet",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="where the table goes; curves and runs are written next to it",
    )
    arguments = parser.parse_args()
    if arguments.images is None:
        parser.error("name the folder with mnist_train.parquet by --images or PU_KD_DATA")
    torch.set_num_threads(1)
    runs_file = arguments.out.with_suffix(".jsonl")
    results = run_missing(Path(arguments.images), arguments.seeds, runs_file)
    table = table_of(results)
    print(table)
    arguments.out.write_text(table + "\n")
    plot(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
