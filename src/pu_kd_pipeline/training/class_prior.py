"""The class prior of a pool: given, or estimated."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.reading import feature_tensors
from pu_kd_pipeline.learning.class_prior.cross_fitting import cross_fitted_ranks
from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior
from pu_kd_pipeline.learning.class_prior.methods import METHODS
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.progress import track
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.checkpoints import told
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
    }


def estimate_prior(
    labeled: ShardedTable, pool: ShardedTable, params: PUTrainingParams
) -> dict[str, Any]:
    """Return the class prior estimated from cross-fitted scores or from the features themselves, with an interval.

    Each fold of positives and pool is scored by a classifier that has seen neither; scores of different folds are made
    comparable by their rank within the fold's pool images.
    """
    settings = params.prior_estimation
    device = prepare_device(params.compute)
    _, positive = feature_tensors(labeled, params.features, device)
    _, unlabeled = feature_tensors(pool, params.features, device)
    n_folds = usable_folds(settings.n_folds, len(positive), "pu_training.prior_estimation.n_folds")
    if len(unlabeled) < n_folds:
        raise InputError(
            f"a pool of {len(unlabeled)} images says nothing of its class prior: set pu_training.class_prior"
        )
    needed = METHODS[settings.method].evidence
    if not needed.trains_classifier:
        evidence = (positive.cpu().numpy(), unlabeled.cpu().numpy())
    else:
        with told("class prior"), seeded(params.seed):
            evidence = cross_fitted_ranks(
                positive,
                unlabeled,
                lambda: new_head(positive, unlabeled, params).to(device),
                score_training(params, settings.epochs),
                n_folds=n_folds,
                alternates=needed.drops_likely_positives,
                generator=torch.Generator(device).manual_seed(params.seed),
                watched=lambda epochs: track(
                    epochs, name="class prior", total=settings.epochs, unit="epochs"
                ),
            )
    estimate = estimate_class_prior(
        *evidence,
        method=settings.method,
        level=settings.level,
        n_bootstrap=settings.n_bootstrap,
        rng=np.random.default_rng(params.seed),
    )
    if not 0 < estimate.value < 1:
        raise InputError(
            f"the class prior was estimated as {estimate.value:.3f}: the pool looks like it holds "
            f"{'nothing but' if estimate.value >= 1 else 'no'} positives. Set pu_training.class_prior if you know it"
        )
    if estimate.note:
        logger.warning(
            "class prior %.3f (%.3f to %.3f): %s",
            estimate.value,
            estimate.lower,
            estimate.upper,
            estimate.note,
        )
    return asdict(estimate)
