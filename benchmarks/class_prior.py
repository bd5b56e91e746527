"""Class prior estimates on planted pools of real images: errors and interval coverage per method.

    python -m benchmarks.class_prior --images FOLDER --out FILE.md
        [--seeds 5] [--work FOLDER] [--methods bbe,km2]

A LeNet-5 learns half of MNIST's training digits; positives are drawn from that half, as a user
labels images that the teacher was trained on. The other half is planted at a known share among
letters and other characters that are not digits, 10,000 images per pool. Every method sees the same
positives and the same pool, through the teacher's descriptor and outputs.

Stores, teacher and features are made once, in `--work`; runs that are in the JSON lines file next
to `--out` are not repeated. Needs mnist_train.parquet and characters_pool.parquet (columns id,
image, label; digits are labels 0 to 9).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.kept_runs import Result, add_run, read_runs
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
# as conf/base/parameters_pu_training.yml sets them
N_FOLDS = 5
N_BOOTSTRAP = 200
REDUCTION = 16
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


@dataclass(frozen=True)
class Setting:
    """One pool, and the positives that go with it."""

    class_prior: float
    n_positive: int
    seed: int


@dataclass(frozen=True)
class Features:
    """(N, F) features of the images that positives and pools are drawn from."""

    teacher_digits: Tensor
    planted_digits: Tensor
    characters: Tensor


def prepared_features(images: Path, work: Path) -> Features:
    """Return the features, made where missing."""
    digits = str(images / "mnist_train.parquet")
    others = str(images / "characters_pool.parquet")
    teacher_digits = _store(
        ImageSource(type="parquet", path=digits, labels="classes", share=(0, 0.5), name="mnist"),
        work / "teacher_digits",
    )
    planted_digits = _store(
        ImageSource(type="parquet", path=digits, labels="classes", share=(0.5, 1), name="mnist"),
        work / "planted_digits",
    )
    characters = _store(
        ImageSource(
            type="parquet",
            path=others,
            labels="ignore",
            exclude_labels=tuple(range(10)),
            name="characters",
        ),
        work / "characters",
    )
    teacher = _teacher(teacher_digits, work / "teacher")
    return Features(
        teacher_digits=_features(teacher_digits, teacher, work / "teacher_digits_features"),
        planted_digits=_features(planted_digits, teacher, work / "planted_digits_features"),
        characters=_features(characters, teacher, work / "characters_features"),
    )


def _store(source: ImageSource, folder: Path) -> ImageStore:
    plan = IngestionPlan(folder.name, (source,), 32, 1, DIGITS, naive.PACKED, 0)
    return write_store(plan, folder)


def _teacher(digits: ImageStore, folder: Path) -> Model:
    if not (folder / "card.json").exists():
        teacher, _ = train_classifier(TEACHER, digits, TEACHER_TRAINING)
        save_model(teacher, folder)
    return load_model(folder)


def _features(store: ImageStore, teacher: Model, folder: Path) -> Tensor:
    table = ShardedTable.write(folder, feature_shards(store, teacher, COMPUTE))
    _, features = feature_tensors(table, "both", torch.device("cpu"))
    return features


def run(features: Features, methods: list[str], setting: Setting) -> list[Result]:
    """Return the estimate of each method for one pool.

    Methods that read the same scores share their training, and each is charged for all of it.
    """
    positive, unlabeled = _draw(features, setting)
    inputs: dict[Evidence, tuple[np.ndarray, np.ndarray]] = {}
    training_seconds: dict[Evidence, float] = {}
    results = []
    for method in methods:
        evidence = METHODS[method].evidence
        if evidence not in inputs:
            start = time.process_time()
            inputs[evidence] = _make_inputs(positive, unlabeled, evidence, setting.seed)
            training_seconds[evidence] = time.process_time() - start
        start = time.process_time()
        estimate = estimate_class_prior(
            *inputs[evidence],
            method=method,
            level=LEVEL,
            n_bootstrap=N_BOOTSTRAP,
            rng=np.random.default_rng(setting.seed),
        )
        seconds = training_seconds[evidence] + time.process_time() - start
        result = {
            "method": method,
            "class_prior": setting.class_prior,
            "n_positive": setting.n_positive,
            "seed": setting.seed,
            "value": estimate.value,
            "lower": estimate.lower,
            "upper": estimate.upper,
            "cpu_seconds": round(seconds, 1),
        }
        results.append(result)
    return results


def _draw(features: Features, setting: Setting) -> tuple[Tensor, Tensor]:
    """Return the features of the positives and of the pool."""
    # One generator per setting, so that a run does not depend on those before it.
    per_mille = round(1000 * setting.class_prior)
    rng = np.random.default_rng([setting.seed, setting.n_positive, per_mille])
    n_planted = round(setting.class_prior * POOL_SIZE)
    positive = _sample(features.teacher_digits, setting.n_positive, rng)
    planted = _sample(features.planted_digits, n_planted, rng)
    others = _sample(features.characters, POOL_SIZE - n_planted, rng)
    pool = torch.cat([planted, others])
    return positive, pool[rng.permutation(POOL_SIZE)]


def _sample(rows: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    return rows[rng.permutation(len(rows))[:n]]


def _make_inputs(
    positive: Tensor, unlabeled: Tensor, evidence: Evidence, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the estimators read: the features themselves, or cross-fitted ranks."""
    if not evidence.trains_classifier:
        return positive.numpy(), unlabeled.numpy()

    def new_head() -> PUHead:
        head = make_head(positive.shape[1] - len(TEACHER_OUTPUTS), "both", REDUCTION)
        head.set_standardization(unlabeled)
        return head

    with seeded(seed):
        return cross_fitted_ranks(
            positive,
            unlabeled,
            new_head,
            TRAINING,
            n_folds=N_FOLDS,
            drops_likely_positives=evidence.drops_likely_positives,
            generator=torch.Generator().manual_seed(seed),
        )


def format_table(results: list[Result]) -> str:
    """Return the results as a Markdown table, one row per method and number of positives."""
    heads = []
    for class_prior in CLASS_PRIORS:
        heads.append(f"error at {class_prior} | abs. error | covered | width")
    lines = [
        f"| method | positives | {' | '.join(heads)} | seeds | CPU-s |",
        "| --- | ---: |" + " ---: |" * (4 * len(CLASS_PRIORS) + 2),
    ]
    for method in METHODS:
        for n_positive in N_POSITIVES:
            rows = _matching(results, method=method, n_positive=n_positive)
            if rows:
                lines.append(_table_row(method, n_positive, rows))
    return "\n".join(lines)


def _table_row(method: str, n_positive: int, rows: list[Result]) -> str:
    cells = [method, f"{n_positive:,}"]
    for class_prior in CLASS_PRIORS:
        cells += _cells(_matching(rows, class_prior=class_prior))
    n_seeds = len({row["seed"] for row in rows})
    seconds = np.mean([row["cpu_seconds"] for row in rows])
    cells += [str(n_seeds), f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def _matching(results: list[Result], **values: object) -> list[Result]:
    return [result for result in results if values.items() <= result.items()]


def _cells(rows: list[Result]) -> list[str]:
    """Return mean error, mean absolute error, coverage and width of the intervals."""
    if not rows:
        return ["–"] * 4
    errors = np.array([row["value"] - row["class_prior"] for row in rows])
    is_covered = [row["lower"] <= row["class_prior"] <= row["upper"] for row in rows]
    widths = [row["upper"] - row["lower"] for row in rows]
    return [
        f"{errors.mean():+.3f}",
        f"{np.abs(errors).mean():.3f}",
        f"{100 * np.mean(is_covered):.0f} %",
        f"{np.mean(widths):.2f}",
    ]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", default=os.environ.get("PU_KD_DATA"), help="folder with the Parquet files"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="file for the table; runs are kept in FILE.jsonl"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for stores, teacher and features; by default --out without its suffix",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    arguments = parser.parse_args()
    if arguments.images is None:
        parser.error("name the folder with mnist_train.parquet by --images or PU_KD_DATA")
    arguments.methods = arguments.methods.split(",")
    unknown = sorted(set(arguments.methods) - set(METHODS))
    if unknown:
        parser.error(f"no such method: {', '.join(unknown)}; known are {', '.join(METHODS)}")
    if arguments.work is None:
        arguments.work = arguments.out.with_suffix("")
    return arguments


def _settings(n_seeds: int) -> Iterator[Setting]:
    # Seeds outermost: a run that is stopped leaves whole repetitions of the table.
    for seed in range(n_seeds):
        for class_prior in CLASS_PRIORS:
            for n_positive in N_POSITIVES:
                yield Setting(class_prior, n_positive, seed)


def main() -> None:
    """Run what is missing and print the table."""
    arguments = _parse_arguments()
    torch.set_num_threads(1)
    results_path = arguments.out.with_suffix(".jsonl")
    results = read_runs(results_path)
    features = None
    for setting in _settings(arguments.seeds):
        finished = _matching(results, **asdict(setting))
        finished_methods = {result["method"] for result in finished}
        missing = [method for method in arguments.methods if method not in finished_methods]
        if not missing:
            continue
        if features is None:
            features = prepared_features(Path(arguments.images), arguments.work)
        for result in run(features, missing, setting):
            results.append(result)
            print(json.dumps(result), flush=True)
            add_run(results_path, result)
    table = format_table(results)
    print(table)
    arguments.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
