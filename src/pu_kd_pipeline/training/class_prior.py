"""The class prior of a pool: given, or estimated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.reading import feature_tensors, read_log_odds
from pu_kd_pipeline.learning.class_prior.cross_fitting import cross_fitted_ranks
from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior
from pu_kd_pipeline.learning.class_prior.methods import METHODS
from pu_kd_pipeline.learning.class_prior.readings import (
    agreement_sentence,
    compare_readings,
    flag_sentence,
)
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_classifier import PUHead
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.progress import track
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.checkpoints import explain_training_errors
from pu_kd_pipeline.training.pu_steps import new_head, score_training, usable_folds

logger = logging.getLogger(__name__)


def given_prior(value: float, labeled: ShardedTable, pool: ShardedTable) -> dict[str, Any]:
    """Return the class prior that the user stated, as `class_prior` stores it."""
    return {
        "value": value,
        "lower": value,
        "upper": value,
        "level": None,
        "method": "given",
        "threshold": None,
        "n_positive": len(labeled),
        "n_unlabeled": len(pool),
        "note": None,
        # Nothing is estimated, so that there is nothing to compare.
        "readings": None,
        "flag": None,
        "warning": None,
    }


def estimate_prior(
    labeled: ShardedTable, pool: ShardedTable, params: PUTrainingParams
) -> dict[str, Any]:
    """Return the class prior estimated from features, with an interval, as `class_prior` stores it.

    Methods that read scores get cross-fitted ones: each fold of positives and pool is scored by a
    classifier that has seen neither. Scores of different folds are made comparable by their rank
    within the fold's pool images.

    `readings` compares the estimate with one that reads the teacher's outputs and trains nothing;
    `flag` and `warning` are set where they contradict each other, see `class_prior.readings`.

    Raises:
        InputError: there are too few images, or the estimate is 0 or 1.
    """
    settings = params.prior_estimation
    device = prepare_device(params.compute)
    _, positive = feature_tensors(labeled, params.features, device)
    _, unlabeled = feature_tensors(pool, params.features, device)
    n_folds = usable_folds(settings.n_folds, len(positive), "pu_training.prior_estimation.n_folds")
    if len(unlabeled) < n_folds:
        raise InputError(
            f"a pool of {len(unlabeled)} images says nothing of its class prior: "
            "set pu_training.class_prior"
        )
    trained_ranks = None
    if METHODS[settings.method].evidence.trains_classifier:
        # Scores are comparable within a fold only, hence ranks.
        evidence = _ranks(positive, unlabeled, params, n_folds)
        trained_ranks = evidence
    else:
        evidence = (positive.cpu().numpy(), unlabeled.cpu().numpy())
    estimate = estimate_class_prior(
        *evidence,
        method=settings.method,
        level=settings.level,
        n_bootstrap=settings.n_bootstrap,
        rng=np.random.default_rng(params.seed),
    )
    # 0 and 1 are possible estimates, but no PU risk can be trained with them.
    if not 0 < estimate.value < 1:
        what = "no"
        if estimate.value >= 1:
            what = "nothing but"
        raise InputError(
            f"the class prior was estimated as {estimate.value:.3f}: the pool looks like it holds "
            f"{what} positives. Set pu_training.class_prior if you know it"
        )
    if estimate.note:
        logger.warning(
            "class prior %.3f (%.3f to %.3f): %s",
            estimate.value,
            estimate.lower,
            estimate.upper,
            estimate.note,
        )
    outputs = (read_log_odds(labeled), read_log_odds(pool))
    rng = np.random.default_rng(params.seed)
    readings = compare_readings(estimate.value, outputs, trained_ranks, rng)
    warning = flag_sentence(readings)
    if warning is not None:
        logger.warning(warning)
    else:
        logger.info(agreement_sentence(readings))
    return {
        **asdict(estimate),
        "readings": asdict(readings),
        "flag": readings.flag,
        "warning": warning,
    }


def _ranks(
    positive: Tensor, unlabeled: Tensor, params: PUTrainingParams, n_folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-fitted ranks of (P, D) and (U, D) features."""
    settings = params.prior_estimation

    def untrained_head() -> PUHead:
        return new_head(positive, unlabeled, params).to(positive.device)

    def tracked(epochs: Iterator[Any]) -> Iterator[Any]:
        return track(epochs, name="class prior", total=settings.epochs, unit="epochs")

    # Without checkpoints: the classifiers are short, and a resumed run trains them again.
    with explain_training_errors("class prior"), seeded(params.seed):
        return cross_fitted_ranks(
            positive,
            unlabeled,
            untrained_head,
            score_training(params, settings.epochs),
            n_folds=n_folds,
            drops_likely_positives=METHODS[settings.method].evidence.drops_likely_positives,
            generator=torch.Generator(positive.device).manual_seed(params.seed),
            track_epochs=tracked,
        )
