"""nnPU and uPU on MNIST, even against odd digits, as Kiryo et al. 2017 (arXiv:1703.00593, sec. 5) set it up.

    python -m benchmarks.nnpu_reference --images FOLDER --out FILE.md [--seeds 3]

1,000 positives with the 6-layer network and 100 positives with the 3-layer one; the unlabeled images are all 60,000
training images. The steps are this project's own (`learning.pu_training`), so a wrong sign anywhere shows here:
uPU must over-fit and nnPU must not. Beside `--out` go the curves (PNG) and the runs (JSON lines), made once.

The paper counts layers of units: its 6-layer network is 784-300-300-300-300-1, its 3-layer one 784-100-1. Its code
(github.com/kiryor/nnPUlearning) takes 100 epochs in two batches each, drawn from positives and unlabeled together; here
every batch has all positives, too, and the small network gets smaller batches and so more updates.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_training import ScoreTraining, fit_scores, pu_step

SETTINGS = (
    (1000, 6, 60, 30_000),
    (100, 3, 100, 10_000),
)  # positives, layers of units, epochs, unlabeled a batch
HIDDEN = {6: (300, 300, 300, 300), 3: (100,)}
# Adam with L2 of 0.005 and a sigmoid loss, as in the paper; each batch of U comes with as many P as there are.
TRAINING = {
    "algorithm": "adam",
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-3,
    "schedule": "constant",
}
LARGEST_POSITIVE_BATCH = 1000


def network(n_layers: int) -> nn.Module:
    """Return the paper's multilayer perceptron; the deep one has BatchNorm instead of biases."""
    sizes = [784, *HIDDEN[n_layers]]
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        is_deep = n_layers > 3
        layers += [nn.Linear(size_in, size_out, bias=not is_deep)]
        layers += [nn.BatchNorm1d(size_out), nn.ReLU()] if is_deep else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1), nn.Flatten(0))


def read_mnist(path: Path) -> tuple[Tensor, np.ndarray]:
    """Return (N, 784) float32 images in [0, 1] and whether each digit is even."""
    table = pq.read_table(path, columns=["image", "label"])
    images = [np.asarray(Image.open(io.BytesIO(image.as_py()))) for image in table["image"]]
    pixels = torch.from_numpy(np.stack(images)).flatten(1).float() / 255
    return pixels, table["label"].to_numpy() % 2 == 0


def run(
    train: tuple[Tensor, np.ndarray],
    test: tuple[Tensor, np.ndarray],
    estimator: str,
    n_positive: int,
    n_layers: int,
    seed: int,
    epochs: int,
    batch: int,
) -> dict[str, object]:
    """Train once and return the test error after each epoch, the last risks, and the seconds it took."""
    start = time.process_time()
    unlabeled, is_even = train
    chosen = np.random.default_rng(seed).choice(np.flatnonzero(is_even), n_positive, replace=False)
    positive = unlabeled[chosen]
    with seeded(seed):
        module = network(n_layers)
    step = pu_step(
        module, class_prior=float(is_even.mean()), estimator=estimator, beta=0.0, gamma=1.0
    )  # type: ignore[arg-type]
    training = ScoreTraining(
        epochs=epochs,
        positive_batch_size=min(n_positive, LARGEST_POSITIVE_BATCH),
        unlabeled_batch_size=batch,
        **TRAINING,  # type: ignore[arg-type]
    )
    records = fit_scores(
        module,
        step,
        positive.__getitem__,
        unlabeled.__getitem__,
        n_positive=n_positive,
        n_unlabeled=len(unlabeled),
        training=training,
        generator=torch.Generator().manual_seed(seed),
    )
    images, truth = test
    errors, record = [], {}
    for record in records:  # noqa: B007 - the last one is told
        module.eval()
        with torch.inference_mode():
            errors.append(round(float(((module(images) > 0).numpy() != truth).mean()), 4))
        module.train()
    facts = {name: record[name] for name in ("risk", "negative_risk", "ascent_share")}
    seconds = time.process_time() - start
    return {"estimator": estimator, "n_positive": n_positive, "n_layers": n_layers, "seed": seed, "epochs": epochs,
            "test_error": errors[-1], **facts, "cpu_seconds": round(seconds, 1), "test_errors": errors}  # fmt: skip


def table_of(results: list[dict[str, object]]) -> str:
    """Return the results as a Markdown table, one row a setting and estimator."""
    lines = [
        "| positives | layers | epochs | batch | estimator | test error | last risk | seeds | CPU-s a run |",
        "| ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for n_positive, n_layers, epochs, batch in SETTINGS:
        for estimator in ("nnpu", "upu"):
            group = [
                r for r in results if (r["n_positive"], r["estimator"]) == (n_positive, estimator)
            ]
            if not group:
                continue
            errors, risks, seconds = (
                np.array([r[name] for r in group], dtype=float)
                for name in ("test_error", "risk", "cpu_seconds")
            )
            spread = f" ± {errors.std(ddof=1):.3f}" if len(group) > 1 else ""
            lines.append(
                f"| {n_positive:,} | {n_layers} | {epochs} | {batch:,} | {estimator} | {errors.mean():.3f}{spread} "
                f"| {risks.mean():+.3f} | {len(group)} | {seconds.mean():.0f} |"
            )
    return "\n".join(lines)


def plot(results: list[dict[str, object]], path: Path) -> None:
    """Draw the test error after each epoch: mean over seeds and one standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (n_positive, n_layers, *_) in zip(
        figure.subplots(1, 2, sharey=True), SETTINGS, strict=True
    ):
        for estimator, name, color in (("nnpu", "nnPU", "#0072b2"), ("upu", "uPU", "#e69f00")):
            curves = [
                r["test_errors"]
                for r in results
                if (r["n_positive"], r["estimator"]) == (n_positive, estimator)
            ]
            if not curves:
                continue
            values = np.array(curves, dtype=float)
            epochs, mean, deviation = (
                np.arange(1, values.shape[1] + 1),
                values.mean(axis=0),
                values.std(axis=0),
            )
            axes.plot(epochs, mean, color=color, linewidth=1.6)
            axes.fill_between(
                epochs, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0
            )
            axes.annotate(
                f" {name} {mean[-1]:.3f}",
                (epochs[-1], mean[-1]),
                color=color,
                va="center",
                annotation_clip=False,
            )
        axes.set_title(f"{n_positive:,} positives, {n_layers} layers", fontsize=10, loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylim(0, 0.55)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    figure.axes[0].set_ylabel("test error")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run what is missing and print the table."""
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
        help="where the table goes; curves and runs lie beside it",
    )
    arguments = parser.parse_args()
    if arguments.images is None:
        parser.error("name the folder with mnist_train.parquet by --images or PU_KD_DATA")
    torch.set_num_threads(1)
    train, test = (
        read_mnist(Path(arguments.images) / f"mnist_{part}.parquet") for part in ("train", "test")
    )
    diary = arguments.out.with_suffix(".jsonl")
    results = (
        [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []
    )
    done = {(r["estimator"], r["n_positive"], r["seed"], r["epochs"]) for r in results}
    for seed in range(arguments.seeds):
        for n_positive, n_layers, epochs, batch in SETTINGS:
            for estimator in ("nnpu", "upu"):
                if (estimator, n_positive, seed, epochs) in done:
                    continue
                result = run(train, test, estimator, n_positive, n_layers, seed, epochs, batch)
                results.append(result)
                print(json.dumps(result), flush=True)
                with diary.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    print(table_of(results))
    arguments.out.write_text(table_of(results) + "\n")
    plot(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
