"""Seeded toy runs of every training; `golden_losses.json` holds the numbers that they gave.

Each run trains for two epochs on the CPU through the functions that the pipeline's nodes call, on
images small enough for a second a run. Its numbers are the columns of its history, one value per
record, and a summary of the model that it ends with. Run this file from the project's root:

    .venv/bin/python -m tests.golden.golden_runs            # print what differs from the file
    .venv/bin/python -m tests.golden.golden_runs --write    # print it, and update the file

Runs within the tolerance keep the numbers they had, so the diff shows only what moved. A commit
that updates the file says why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_training import ScoreTraining, fit_scores, pu_step
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from tests.golden.golden_numbers import (
    GOLDEN_FILE,
    RELATIVE_TOLERANCE,
    STORED_FEATURES_TOLERANCE,
    Columns,
    differences,
    history_columns,
    model_columns,
    read_golden,
    rounded,
    write_golden,
)
from tests.golden.toy_inputs import (
    BATCH_SIZE,
    COMPUTE,
    IMAGE_PROBES,
    N_CLASSES,
    N_UPDATES,
    PHOTO_VIEWS,
    PLAIN_VIEWS,
    RECORD_EVERY,
    SGD,
    SHIFTED_VIEWS,
    ToyInputs,
)

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
    "kd_recipe": distillation_params(
        objective="kd",
        augmentation=PHOTO_VIEWS,
        mixing="cutmix",
        mixing_share=0.5,
        final_phase={"share": 0.5, "images": "labeled"},
        weight_averaging="final_phase",
    ),
    "robust_kd": distillation_params(objective="robust_kd"),
    "standardized_kd": distillation_params(objective="standardized_kd"),
    "logit_mse": distillation_params(objective="logit_mse"),
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
    # Only robust_kd reads them.
    vectors = np.random.default_rng(0).uniform(0.5, 1.5, (3, N_CLASSES))
    student, history = distill(
        manifest,
        toy.labeled,
        toy.pool,
        toy.teacher,
        pd.DataFrame(vectors),
        params,
        name="student",
        yardstick=toy.yardstick,
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
    # `toy.manifest` makes a new table each time, so that a column may be added.
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
    # A share of 0.4 comes from the positives' distribution.
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
        "max_unlabeled": 1_000_000,
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


def tolerance_of(run: str) -> float:
    """Return how far a number of the run may be off, relative to the largest of its column."""
    if run in PU_RUNS and PU_RUNS[run].backbone == "frozen":
        return STORED_FEATURES_TOLERANCE
    return RELATIVE_TOLERANCE


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
                moved = differences(run, before[run], actual, tolerance_of(run))
            changes += moved
            after[run] = actual if moved else before[run]
    for change in changes:
        print(change)
    print(f"{len(RUNS)} runs, {len(changes)} differences from {GOLDEN_FILE.name}")
    if writes:
        write_golden(after)
    if changes and not writes:
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare or update the golden losses.")
    parser.add_argument("--write", action="store_true", help=f"update {GOLDEN_FILE.name}")
    sys.exit(main(writes=parser.parse_args().write))
