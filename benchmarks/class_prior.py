"""Class prior estimates on planted pools of real images: error and interval coverage of every method.

    python -m benchmarks.class_prior --images FOLDER --out FILE.md [--seeds 5] [--work FOLDER] [--methods bbe,km2]

A LeNet-5 learns half of MNIST's training digits; positives are drawn from that half, as a user labels images of the
teacher's. The other half is planted at a known share among letters and other characters that are no digits, 10,000
images a pool. Every method sees the same positives and the same pool, through the teacher's descriptor and outputs.

Stores, teacher and features are made once, in `--work`; runs that are in the JSON lines file beside `--out` are not
repeated. Needs mnist_train.parquet and characters_pool.parquet (columns id, image, label; digits are labels 0 to 9).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import naive
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.features.reading import feature_tensors
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.class_prior.cross_fitting import cross_fitted_ranks
from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior
from pu_kd_pipeline.learning.class_prior.methods import METHODS, Evidence
from pu_kd_pipeline.learning.features import TEACHER_OUTPUTS
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_classifier import PUHead, make_head
from pu_kd_pipeline.learning.pu_training import ScoreTraining
from pu_kd_pipeline.models.model import Model, load_model, save_model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.teacher import train_classifier

CLASS_PRIORS = (0.05, 0.2, 0.5)
N_POSITIVES = (10, 100, 1000)
POOL_SIZE = 10_000
LEVEL = 0.9
# as conf/base/parameters_pu_training.yml sets it
N_FOLDS, N_BOOTSTRAP, REDUCTION = 5, 200, 16
TRAINING = ScoreTraining(20, 64, 256, "adam", 0.01, 0.9, 0.005, "cosine")

DIGITS = tuple("0123456789")
COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=4, inference_batch_size=None
)
TEACHER = TeacherParams(
    architecture="lenet5",
    architecture_options={},
    weights=None,
    classes=DIGITS,
    input=InputSpec(size_px=32, channels=1, mean=(0.1307,), std=(0.3081,)),
    taps=None,
)
TEACHER_TRAINING = TeacherTrainingParams(
    seed=0,
    n_updates=4000,
    record_every=400,
    batch_size=128,
    optimizer=OptimizerParams(
        algorithm="sgd", learning_rate=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine"
    ),
    augmentation=AugmentationParams(padding_px=2, horizontal_flip=False),
    compute=COMPUTE,
)

Result = dict[str, Any]


def prepared_features(images: Path, work: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features of the teacher's digits, of the other digits and of what is no digit, made where missing."""
    digits, others = (
        str(images / f"{name}.parquet") for name in ("mnist_train", "characters_pool")
    )
    sources = {
        "teacher_digits": ImageSource(
            type="parquet", path=digits, labels="classes", share=(0, 0.5), name="mnist"
        ),
        "planted_digits": ImageSource(
            type="parquet", path=digits, labels="classes", share=(0.5, 1), name="mnist"
        ),
        "characters": ImageSource(
            type="parquet",
            path=others,
            labels="ignore",
            exclude_labels=tuple(range(10)),
            name="characters",
        ),
    }
    stores = {
        name: write_store(
            IngestionPlan(name, (source,), 32, 1, DIGITS, naive.PACKED, 0), work / name
        )
        for name, source in sources.items()
    }
    teacher = _teacher(stores["teacher_digits"], work / "teacher")
    features = []
    for name, store in stores.items():
        table = ShardedTable.write(
            work / f"{name}_features", feature_shards(store, teacher, COMPUTE)
        )
        features.append(feature_tensors(table, "both", torch.device("cpu"))[1])
    return features[0], features[1], features[2]


def _teacher(digits: ImageStore, folder: Path) -> Model:
    if not (folder / "card.json").exists():
        save_model(train_classifier(TEACHER, digits, TEACHER_TRAINING)[0], folder)
    return load_model(folder)


def run(
    features: tuple[Tensor, Tensor, Tensor],
    methods: list[str],
    class_prior: float,
    n_positive: int,
    seed: int,
) -> list[Result]:
    """Return what each method says of one pool; methods that read the same scores share their training."""
    teacher_digits, planted_digits, characters = features
    rng = np.random.default_rng([seed, n_positive, round(1000 * class_prior)])
    n_planted = round(class_prior * POOL_SIZE)
    positive = teacher_digits[rng.permutation(len(teacher_digits))[:n_positive]]
    planted = planted_digits[rng.permutation(len(planted_digits))[:n_planted]]
    unlabeled = torch.cat(
        [planted, characters[rng.permutation(len(characters))[: POOL_SIZE - n_planted]]]
    )
    unlabeled = unlabeled[rng.permutation(POOL_SIZE)]
    evidence: dict[Evidence, tuple[Any, Any, float]] = {}
    results = []
    for method in methods:
        reads = METHODS[method].evidence
        if reads not in evidence:
            start = time.process_time()
            evidence[reads] = (
                *_evidence(positive, unlabeled, reads, seed),
                time.process_time() - start,
            )
        start = time.process_time()
        estimate = estimate_class_prior(
            *evidence[reads][:2],
            method=method,
            level=LEVEL,
            n_bootstrap=N_BOOTSTRAP,
            rng=np.random.default_rng(seed),
        )
        seconds = evidence[reads][2] + time.process_time() - start
        result = {
            "method": method,
            "class_prior": class_prior,
            "n_positive": n_positive,
            "seed": seed,
        }
        facts = {"value": estimate.value, "lower": estimate.lower, "upper": estimate.upper}
        results.append({**result, **facts, "cpu_seconds": round(seconds, 1)})
    return results


def _evidence(
    positive: Tensor, unlabeled: Tensor, reads: Evidence, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if not reads.trains_classifier:
        return positive.numpy(), unlabeled.numpy()

    def new_head() -> PUHead:
        head = make_head(positive.shape[1] - len(TEACHER_OUTPUTS), "both", REDUCTION)
        head.standardize_by(unlabeled)
        return head

    with seeded(seed):
        return cross_fitted_ranks(
            positive,
            unlabeled,
            new_head,
            TRAINING,
            n_folds=N_FOLDS,
            alternates=reads.drops_likely_positives,
            generator=torch.Generator().manual_seed(seed),
        )


def table_of(results: list[Result]) -> str:
    """Return the results as a Markdown table, one row a method and number of positives."""
    heads = [
        f"error at {class_prior} | abs. error | covered | width" for class_prior in CLASS_PRIORS
    ]
    lines = [
        f"| method | positives | {' | '.join(heads)} | seeds | CPU-s |",
        "| --- | ---: |" + " ---: |" * (4 * len(CLASS_PRIORS) + 2),
    ]
    for method in METHODS:
        for n_positive in N_POSITIVES:
            rows = [r for r in results if (r["method"], r["n_positive"]) == (method, n_positive)]
            if not rows:
                continue
            cells = [
                _cells([r for r in rows if r["class_prior"] == class_prior])
                for class_prior in CLASS_PRIORS
            ]
            seconds, n_seeds = (
                np.mean([r["cpu_seconds"] for r in rows]),
                len({r["seed"] for r in rows}),
            )
            lines.append(
                f"| {method} | {n_positive:,} | {' | '.join(cells)} | {n_seeds} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def _cells(rows: list[Result]) -> str:
    if not rows:
        return " | ".join("–" * 4)
    errors = np.array([r["value"] - r["class_prior"] for r in rows])
    is_covered = [r["lower"] <= r["class_prior"] <= r["upper"] for r in rows]
    width = np.mean([r["upper"] - r["lower"] for r in rows])
    return f"{errors.mean():+.3f} | {np.abs(errors).mean():.3f} | {100 * np.mean(is_covered):.0f} % | {width:.2f}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", default=os.environ.get("PU_KD_DATA"), help="folder with the Parquet files"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="where the table goes; runs are kept in FILE.jsonl"
    )
    parser.add_argument(
        "--work", type=Path, help="where stores, teacher and features go; beside --out by default"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    arguments = parser.parse_args()
    if arguments.images is None:
        parser.error("name the folder with mnist_train.parquet by --images or PU_KD_DATA")
    methods = arguments.methods.split(",")
    if unknown := sorted(set(methods) - set(METHODS)):
        parser.error(f"no such method: {', '.join(unknown)}; there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    diary = arguments.out.with_suffix(".jsonl")
    results = (
        [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []
    )
    done = {(r["method"], r["class_prior"], r["n_positive"], r["seed"]) for r in results}
    features = None
    for seed in range(arguments.seeds):
        for class_prior in CLASS_PRIORS:
            for n_positive in N_POSITIVES:
                missing = [m for m in methods if (m, class_prior, n_positive, seed) not in done]
                if not missing:
                    continue
                features = features or prepared_features(
                    Path(arguments.images), arguments.work or arguments.out.with_suffix("")
                )
                for result in run(features, missing, class_prior, n_positive, seed):
                    results.append(result)
                    print(json.dumps(result), flush=True)
                    with diary.open("a") as file:
                        file.write(json.dumps(result) + "\n")
    print(table_of(results))
    arguments.out.write_text(table_of(results) + "\n")


if __name__ == "__main__":
    main()
