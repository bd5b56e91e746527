"""Seeded toy runs of every training; `golden_losses.json` holds the numbers that they gave.

Each run trains for two epochs on the CPU through the functions that the pipeline's nodes call, on
images small enough for a second a run. Its numbers are the columns of its history, one value per
record, and a summary of the model that it ends with. Run this file from the project's root:

    .venv/bin/python tests/golden/golden_runs.py            # print what differs from the file
    .venv/bin/python tests/golden/golden_runs.py --write    # print it, and update the file

Runs within the tolerance keep the numbers they had, so the diff shows only what moved. A commit
that updates the file says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_training import ScoreTraining, fit_scores, pu_step
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from pu_kd_pipeline.training.teacher import train_classifier

GOLDEN_FILE = Path(__file__).with_name("golden_losses.json")

# One machine repeats its numbers to the last bit, and torch 2.11 and 2.13 agree to it. Other vector
# units sum float32 in another order: without AVX-512, AVX2 or oneDNN, no number moved by more than
# 3e-6 of its column's largest. A loss scaled by 1.001 moves many by more than 1e-4.
RELATIVE_TOLERANCE = 1e-5
# Heads read features stored as float16: one that differs in its seventh digit may round to the
# neighboring float16, 5e-4 away. Without AVX2 that moved held-out scores by 4e-5.
STORED_FEATURES_TOLERANCE = 1e-4
SIGNIFICANT_DIGITS = 8

Columns = dict[str, list[float]]
"""The numbers of one run: a history's columns, and what is measured on the trained model."""


# --- toy inputs -----------------------------------------------------------------------------------

N_CLASSES = 5
SIZE_PX = 8
N_LABELED = 40
N_RELEVANT = 60
N_IRRELEVANT = 60
BATCH_SIZE = 24
HELD_OUT_SHARE = 0.1
# An epoch of the 144 of 160 images that are not held out is 6 updates.
N_UPDATES = 12
RECORD_EVERY = 2
IMAGE_PROBES = (3, 1, SIZE_PX, SIZE_PX)

COMPUTE = ComputeParams(
    device="cpu",
    precision="float32",
    n_threads=1,
    resident_limit_gb=1.0,
    inference_batch_size=64,
)
# SGD and not Adam: Adam's first steps have one size whatever the gradient's, so where a gradient
# is zero but for rounding (a bias before BatchNorm), another CPU would step the other way.
SGD = OptimizerParams(
    algorithm="sgd",
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="constant",
)
PLAIN_VIEWS = AugmentationParams(padding_px=0, horizontal_flip=False)
FLIPPED_VIEWS = AugmentationParams(padding_px=0, horizontal_flip=True)
SHIFTED_VIEWS = AugmentationParams(padding_px=1, horizontal_flip=True)


def encoded_image(number: int, *, is_relevant: bool) -> bytes:
    """Return a PNG of noise and a bar in the row of its class, inverted if it is irrelevant."""
    pixels = np.random.default_rng(number).integers(0, 120, (SIZE_PX, SIZE_PX), dtype=np.uint8)
    row = number % N_CLASSES
    pixels[row : row + 3] += 100
    if not is_relevant:
        pixels = 255 - pixels
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_rows(start: int, n: int, *, is_relevant: bool) -> list[dict[str, Any]]:
    """Return n rows of a table of images, with consecutive numbers."""
    rows = []
    for number in range(start, start + n):
        image = encoded_image(number, is_relevant=is_relevant)
        rows.append({"id": f"image-{number}", "image": image, "label": number % N_CLASSES})
    return rows


def write_images(folder: Path, rows: list[dict[str, Any]], labels: str) -> ImageStore:
    """Return an image store of the rows; `labels` is as for `ImageSource`."""
    folder.mkdir(parents=True)
    file = folder / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    source = ImageSource.model_validate({"type": "parquet", "path": str(file), "labels": labels})
    store = ImageStoreParams(
        kind="packed",
        packed_max_size_px=64,
        disk_budget_gb=1.0,
        shard_size=64,
        max_image_pixels=10_000,
        max_quarantined_share=0.0,
        n_workers=1,
    )
    class_names = tuple(str(index) for index in range(N_CLASSES))
    plan = IngestionPlan("images", (source,), SIZE_PX, 1, class_names, store, 0)
    return write_store(plan, folder / "store")


@dataclass(frozen=True)
class ToyInputs:
    """What every run reads; made once and shared, since no run changes it."""

    folder: Path

    @cached_property
    def labeled(self) -> ImageStore:
        """Images whose class is known."""
        rows = image_rows(0, N_LABELED, is_relevant=True)
        return write_images(self.folder / "labeled", rows, "classes")

    @cached_property
    def pool(self) -> ImageStore:
        """Images without labels, half of them irrelevant."""
        rows = image_rows(100, N_RELEVANT, is_relevant=True)
        rows += image_rows(1000, N_IRRELEVANT, is_relevant=False)
        return write_images(self.folder / "pool", rows, "ignore")

    @cached_property
    def trained_teacher(self) -> tuple[Model, pd.DataFrame]:
        """A teacher of the labeled images, and its history."""
        size = {"size_px": SIZE_PX, "channels": 1, "mean": [0.4], "std": [0.25]}
        architecture = TeacherParams(
            architecture="digits_cnn",
            architecture_options={"width": 8},
            weights=None,
            taps=None,
            classes=N_CLASSES,
            input=size,
        )
        training = TeacherTrainingParams(
            seed=1,
            n_updates=N_UPDATES,
            record_every=RECORD_EVERY,
            batch_size=BATCH_SIZE,
            optimizer=SGD,
            augmentation=FLIPPED_VIEWS,
            compute=COMPUTE,
        )
        return train_classifier(architecture, self.labeled, training)

    @property
    def teacher(self) -> Model:
        """The network that students and PU classifiers start from."""
        return self.trained_teacher[0]

    @cached_property
    def features(self) -> tuple[ShardedTable, ShardedTable]:
        """The teacher's features of the labeled images and of the pool."""
        labeled = feature_shards(self.labeled, self.teacher, COMPUTE)
        pool = feature_shards(self.pool, self.teacher, COMPUTE)
        return (
            ShardedTable.write(self.folder / "labeled_features", labeled),
            ShardedTable.write(self.folder / "pool_features", pool),
        )

    @property
    def manifest(self) -> pd.DataFrame:
        """All images, shuffled."""
        labeled = self.labeled.index[["id"]].assign(origin="labeled")
        pool = self.pool.index[["id"]].assign(origin="pool")
        return pd.concat([labeled, pool]).sample(frac=1, random_state=0)


# --- what is recorded -----------------------------------------------------------------------------


def history_columns(history: pd.DataFrame) -> Columns:
    """Return every column of a history, truth values as 0 and 1."""
    columns: Columns = {}
    for name in history.columns:
        columns[str(name)] = history[name].astype(float).tolist()
    return columns


def model_columns(module: nn.Module, *probe_shape: int) -> Columns:
    """Return sum and L2 norm of the parameters, and what the module gives for fixed inputs.

    The outputs see what sums cannot: BatchNorm's statistics, signs, weights that changed places.
    """
    flat = [parameter.detach().flatten() for parameter in module.parameters()]
    weights = torch.cat(flat).double()
    probes = torch.randn(*probe_shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        outputs = module.eval()(probes)
    return {
        "weights (sum, norm)": [weights.sum().item(), weights.norm().item()],
        "outputs": outputs.flatten().tolist(),
    }


# --- distillation ---------------------------------------------------------------------------------

LATENT = {
    "logits_weight": 1.0,
    "penultimate_weight": 1.0,
    "kl_weight": 0.5,
    "shared_head": False,
}
NOISE_MATRIX = {
    "diagonal": 0.9,
    "learns_diagonal": False,
    "learning_rate": 0.1,  # so that the matrix moves within two epochs
    "pseudo_label_weight": 1.0,
}
# The weight is 1000 in the paper, for maps of 32x32 images.
ATTENTION = {"n_taps": 3, "weight": 10.0, "label_weight": 0.0}
# A class prior this high makes the negative risk negative: only then do the two PU modes differ.
CRITIC = {
    "mode": "clamp",
    "class_prior": [0.6, 0.7],
    "weight": 0.5,
    "ramp_updates": 4,
    "lipschitz": 20.0,
    "learning_rate": 2e-4,
}


def distillation_params(**changes: Any) -> DistillationParams:
    """Return the parameters of a toy student, with changes."""
    given = {
        "seed": 0,
        "student_architecture": "digits_cnn",
        "student_options": {"width": 4},
        "objective": "kd",
        "noise_matrix": NOISE_MATRIX,
        "latent": LATENT,
        "attention": ATTENTION,
        "critic": CRITIC,
        "temperature": 2.0,
        "n_updates": N_UPDATES,
        "record_every": RECORD_EVERY,
        "batch_size": BATCH_SIZE,
        "held_out_share": HELD_OUT_SHARE,
        "teacher_cache": "exact",
        "cached_views": 4,
        "keep": "last",
        "optimizer": SGD,
        "augmentation": PLAIN_VIEWS,
        "compute": COMPUTE,
    }
    return DistillationParams.model_validate(given | changes)


def critic_params(mode: str) -> DistillationParams:
    """Return the parameters of a student under a critic of that mode."""
    return distillation_params(objective="pu_critic", critic=CRITIC | {"mode": mode})


DISTILLATION_RUNS: dict[str, DistillationParams] = {
    "kd": distillation_params(objective="kd"),
    "kd_random_views": distillation_params(
        objective="kd",
        augmentation=SHIFTED_VIEWS,
        teacher_cache="views",
        keep="best",
        optimizer=SGD.model_copy(update={"schedule": "cosine"}),
    ),
    "robust_kd": distillation_params(objective="robust_kd"),
    "noisy_kd": distillation_params(objective="noisy_kd"),
    "noisy_kd_learned_diagonal": distillation_params(
        objective="noisy_kd",
        noise_matrix=NOISE_MATRIX | {"learns_diagonal": True},
    ),
    "latent": distillation_params(objective="latent"),
    "latent_shared_head": distillation_params(
        objective="latent",
        latent=LATENT | {"shared_head": True},
    ),
    "attention": distillation_params(objective="attention"),
    "attention_with_labels": distillation_params(
        objective="attention",
        attention=ATTENTION | {"label_weight": 0.5},
    ),
    "pu_critic_clamp": critic_params("clamp"),
    "pu_critic_ascent": critic_params("ascent"),
    "pu_critic_gan": critic_params("gan"),
}


def student_columns(params: DistillationParams, toy: ToyInputs, manifest: pd.DataFrame) -> Columns:
    """Distill a student on the images of a manifest and return its numbers."""
    vectors = np.random.default_rng(0).uniform(0.5, 1.5, (3, N_CLASSES))
    student, history = distill(
        manifest,
        toy.labeled,
        toy.pool,
        toy.teacher,
        pd.DataFrame(vectors),
        params,
        name="student",
    )
    return history_columns(history) | model_columns(student.network, *IMAGE_PROBES)


def distilled(params: DistillationParams, toy: ToyInputs) -> Columns:
    """Distill on all images, or on those with labels where the objective reads labels."""
    manifest = toy.manifest
    if params.attention is not None and params.attention.label_weight:
        manifest = manifest[manifest["origin"] == "labeled"]
    return student_columns(params, toy, manifest)


def distilled_by_probability(toy: ToyInputs) -> Columns:
    """Distill on images drawn with replacement, as the preferential method does."""
    manifest = toy.manifest
    weights = np.random.default_rng(3).uniform(size=len(manifest))
    manifest["sampling_probability"] = weights / weights.sum()
    return student_columns(distillation_params(objective="kd"), toy, manifest)


# --- PU learning ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreRun:
    """nnPU training of a small network on Gaussian samples."""

    class_prior: float
    beta: float = 0.0
    gamma: float = 1.0


SCORE_RUNS: dict[str, ScoreRun] = {
    "scores_nnpu_descent": ScoreRun(class_prior=0.4),
    "scores_nnpu_ascent": ScoreRun(class_prior=0.9, beta=0.01, gamma=0.5),
}


def scored(run: ScoreRun, toy: ToyInputs) -> Columns:
    """Train a score function with one record per epoch and return its numbers."""
    del toy  # the samples are drawn here
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(40, 4, generator=generator) + 1.0
    unlabeled = torch.randn(120, 4, generator=generator)
    unlabeled[:48] += 1.0
    with seeded(0):
        module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    training = ScoreTraining(
        epochs=2,
        positive_batch_size=16,
        unlabeled_batch_size=BATCH_SIZE,
        algorithm="sgd",
        learning_rate=0.5,
        momentum=0.9,
        weight_decay=0.0,
        schedule="constant",
    )
    step = pu_step(
        module,
        class_prior=run.class_prior,
        estimator="nnpu",
        beta=run.beta,
        gamma=run.gamma,
    )
    records = fit_scores(
        module,
        step,
        positive.__getitem__,
        unlabeled.__getitem__,
        n_positive=len(positive),
        n_unlabeled=len(unlabeled),
        training=training,
        generator=generator,
    )
    history = pd.DataFrame(list(records))
    return history_columns(history) | model_columns(module, 6, 4)


def pu_params(**changes: Any) -> PUTrainingParams:
    """Return the parameters of a toy PU classifier, with changes."""
    given = {
        "seed": 0,
        "class_prior": 0.5,
        "prior_estimation": {
            "method": "ted",
            "n_folds": 2,
            "epochs": 2,
            "n_bootstrap": 20,
            "level": 0.9,
        },
        "estimator": "nnpu",
        "beta": 0.0,
        "gamma": 1.0,
        "backbone": "frozen",
        "features": "descriptor",
        "attention_reduction": 4,
        "epochs": 2,
        "positive_batch_size": 16,
        "unlabeled_batch_size": BATCH_SIZE,
        "held_out_folds": 2,
        "optimizer": SGD,
        "augmentation": SHIFTED_VIEWS,
        "compute": COMPUTE,
    }
    return PUTrainingParams.model_validate(given | changes)


# An end-to-end training moves the descriptor as well, and saturates sooner.
END_TO_END = {"backbone": "full", "optimizer": SGD.model_copy(update={"learning_rate": 0.003})}
# Half of the pool is relevant: the higher the stated prior, the more often nnPU's risk of the
# negatives falls below zero.
PU_RUNS: dict[str, PUTrainingParams] = {
    "head_nnpu_descent": pu_params(class_prior=0.2),
    "head_nnpu_ascent": pu_params(class_prior=0.7),
    "head_upu": pu_params(class_prior=0.7, estimator="upu"),
    "head_cvir": pu_params(class_prior=0.5, estimator="cvir"),
    "end_to_end_nnpu_descent": pu_params(class_prior=0.2, **END_TO_END),
    "end_to_end_nnpu_ascent": pu_params(class_prior=0.7, **END_TO_END),
}
NNPU_DESCENT_RUNS = ("scores_nnpu_descent", "head_nnpu_descent", "end_to_end_nnpu_descent")
NNPU_ASCENT_RUNS = ("scores_nnpu_ascent", "head_nnpu_ascent", "end_to_end_nnpu_ascent")


def pu_trained(params: PUTrainingParams, toy: ToyInputs) -> Columns:
    """Train a PU classifier and return its numbers and those of the held-out positives."""
    class_prior = params.class_prior
    assert class_prior is not None
    if params.backbone == "frozen":
        trained = train_head(*toy.features, toy.teacher, class_prior, params)
        probes: tuple[int, ...] = (6, trained[0].card.descriptor_size)
    else:
        trained = train_end_to_end(toy.labeled, toy.pool, toy.teacher, class_prior, params)
        probes = IMAGE_PROBES
    classifier, history, ranks = trained
    held_out = {
        "held-out fold": ranks["fold"].astype(float).tolist(),
        "held-out rank": ranks["rank"].tolist(),
        "held-out score": ranks["pu_score"].tolist(),
    }
    return history_columns(history) | held_out | model_columns(classifier.module, *probes)


# --- all runs -------------------------------------------------------------------------------------


def teacher_trained(toy: ToyInputs) -> Columns:
    """Return the numbers of the teacher, which most other runs start from."""
    teacher, history = toy.trained_teacher
    return history_columns(history) | model_columns(teacher.network, *IMAGE_PROBES)


def all_runs() -> dict[str, Callable[[ToyInputs], Columns]]:
    """Return the runs by name."""
    runs: dict[str, Callable[[ToyInputs], Columns]] = {"teacher": teacher_trained}
    for name, params in DISTILLATION_RUNS.items():
        runs[name] = partial(distilled, params)
    runs["kd_drawn_by_probability"] = distilled_by_probability
    for name, score_run in SCORE_RUNS.items():
        runs[name] = partial(scored, score_run)
    for name, pu_run in PU_RUNS.items():
        runs[name] = partial(pu_trained, pu_run)
    return runs


RUNS = all_runs()


def columns_of(run: str, toy: ToyInputs) -> Columns:
    """Return the numbers of a run, rounded as the file has them."""
    # Where there is no oneDNN, torch may convolve with NNPACK, whose Winograd transform is coarse:
    # after two epochs, outputs differed by 1e-2.
    with torch.backends.nnpack.flags(enabled=False):
        columns = RUNS[run](toy)
    return rounded(columns)


# --- the file and comparison with it --------------------------------------------------------------


def read_golden() -> dict[str, Columns]:
    """Return the numbers of all runs as they were recorded; none where there is no file."""
    if not GOLDEN_FILE.exists():
        return {}
    golden: dict[str, Columns] = json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))
    return golden


def write_golden(golden: Mapping[str, Columns]) -> None:
    """Write the file with one line per column, so that a diff reads like a table."""
    blocks = []
    for run, columns in golden.items():
        lines = [f"    {json.dumps(name)}: {json.dumps(columns[name])}" for name in columns]
        blocks.append(f"  {json.dumps(run)}: {{\n" + ",\n".join(lines) + "\n  }")
    GOLDEN_FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


def rounded(columns: Columns) -> Columns:
    """Return the columns with the digits that float32 has, and one more."""
    result: Columns = {}
    for name, values in columns.items():
        result[name] = [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values]
    return result


def tolerance_of(run: str) -> float:
    """Return how far a number of the run may be off, relative to the largest of its column."""
    reads_stored_features = run in PU_RUNS and PU_RUNS[run].backbone == "frozen"
    return STORED_FEATURES_TOLERANCE if reads_stored_features else RELATIVE_TOLERANCE


def differences(run: str, expected: Columns, actual: Columns) -> list[str]:
    """Return one sentence for each number of a run that is outside the tolerance."""
    found: list[str] = []
    for name in sorted(expected.keys() | actual.keys()):
        where = f"run {run!r}, column {name!r}"
        if name not in actual:
            found.append(f"{where}: the run no longer gives it")
        elif name not in expected:
            found.append(f"{where}: {GOLDEN_FILE.name} does not have it")
        else:
            found += record_differences(where, expected[name], actual[name], tolerance_of(run))
    return found


def record_differences(
    where: str,
    expected: list[float],
    actual: list[float],
    tolerance: float,
) -> list[str]:
    """Return one sentence for each record of a column that is outside the tolerance."""
    if len(actual) != len(expected):
        return [f"{where}: expected {len(expected)} records, got {len(actual)}"]
    # A loss close to zero is a difference of larger numbers and has their rounding error, so the
    # scale is the column's largest value and not its own.
    allowed = tolerance * max(abs(value) for value in expected)
    found = []
    for record, (before, now) in enumerate(zip(expected, actual, strict=True), start=1):
        is_close = abs(now - before) <= allowed  # false where a number is nan
        if not is_close:
            found.append(f"{where}, record {record}: expected {before:.8g}, got {now:.8g}")
    return found


def main(*, writes: bool) -> int:
    """Run everything, print what differs from the file, and update it if asked to.

    Returns:
        the exit status: 1 where something differs and was not written.
    """
    torch.set_num_threads(1)
    before = read_golden()
    after: dict[str, Columns] = {}
    changes = [f"run {run!r}: gone" for run in before if run not in RUNS]
    with tempfile.TemporaryDirectory() as folder:
        toy = ToyInputs(Path(folder))
        for run in RUNS:
            actual = columns_of(run, toy)
            moved = [f"run {run!r}: new"]
            if run in before:
                moved = differences(run, before[run], actual)
            changes += moved
            after[run] = actual if moved else before[run]
    for change in changes:
        print(change)
    print(f"{len(RUNS)} runs, {len(changes)} differences from {GOLDEN_FILE.name}")
    if writes:
        write_golden(after)
        return 0
    return 1 if changes else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare or update the golden losses.")
    parser.add_argument("--write", action="store_true", help=f"update {GOLDEN_FILE.name}")
    sys.exit(main(writes=parser.parse_args().write))
