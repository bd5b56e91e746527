"""The class prior of a pool: given, or estimated."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER
from pu_kd_pipeline.features.reading import feature_tensors, images_digest, read_log_odds
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
from pu_kd_pipeline.params.pu_training import AUDIT, PUTrainingParams
from pu_kd_pipeline.progress import track
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.checkpoints import explain_training_errors
from pu_kd_pipeline.training.pu_steps import (
    new_head,
    score_training,
    unlabeled_rows,
    usable_folds,
)

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


def audited_prior(
    audit: Mapping[str, Any] | None, labeled: ShardedTable, pool: ShardedTable
) -> dict[str, Any]:
    """Return the class prior that an audit found, as `class_prior` stores it.

    Args:
        audit: result of `pool_audit.estimation.estimate_audit`; None: there is none.
        labeled: features of the labeled images.
        pool: features of the pool.

    Raises:
        InputError: there is no audit, or none that is answered and of this pool and teacher, or it
            found 0 or 1.
    """
    found = checked_audit(audit, pool)
    return {
        **given_prior(found["value"], labeled, pool),
        "lower": found["lower"],
        "upper": found["upper"],
        "level": found["level"],
        "method": AUDIT,
        "note": f"by the answers to {found['n_answered']:,} images",
    }


def checked_audit(audit: Mapping[str, Any] | None, pool: ShardedTable) -> dict[str, Any]:
    """Return value, limits, level and number of answers of an audit that is of a pool.

    Raises:
        InputError: as `audited_prior`.
    """
    key = "pu_training.class_prior: audit"
    command = "`kedro run --pipeline=pool_audit`"
    if audit is None:
        raise InputError(
            f"{key}: the pool was not audited: run {command}, and answer the page that it writes"
        )
    try:
        provenance = audit["provenance"]
        is_of_pool = provenance["pool"] == images_digest(pool)
        is_of_teacher = provenance["teacher"] == pool.facts.get(TEACHER, provenance["teacher"])
        prior = audit["class_prior"]
        found = None
        if prior is not None:
            limits = {name: float(prior[name]) for name in ("value", "lower", "upper")}
            found = {**limits, "level": float(audit["level"]), "n_answered": audit["n_answered"]}
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(
            f"{key}: pool_audit.json is damaged, or of another version: write it again with "
            f"{command}"
        ) from exc
    for name, is_same in (("pool", is_of_pool), ("teacher", is_of_teacher)):
        if not is_same:
            raise InputError(
                f"{key}: pool_audit.json is of another {name}: run {command}, and answer the page "
                "that it writes"
            )
    if found is None:
        raise InputError(
            f"{key}: the audit has no answers yet: answer 08_reporting/pool_audit.html of the data "
            f"folder, put the file that it saves to its 01_raw, and run {command}"
        )
    # 0 and 1 are possible answers, but no PU risk can be trained with them.
    if not 0 < found["value"] < 1:
        raise InputError(
            f"{key}: the answers to the audit found {found['value']:.0%} of the pool related, with "
            f"a 95 % interval of {found['lower']:.3f} to {found['upper']:.3f}: set "
            "pu_training.class_prior to a number in it"
        )
    return found


def with_audited_prior(
    params: PUTrainingParams, audit: Mapping[str, Any] | None, pool: ShardedTable
) -> PUTrainingParams:
    """Return the parameters with the number that an audit found in the place of `audit`.

    Raises:
        InputError: as `audited_prior`.
    """
    if params.class_prior != AUDIT:
        return params
    return params.model_copy(update={"class_prior": checked_audit(audit, pool)["value"]})


def estimate_prior(
    labeled: ShardedTable, pool: ShardedTable, params: PUTrainingParams
) -> dict[str, Any]:
    """Return the class prior estimated from features, with an interval, as `class_prior` stores it.

    Of a pool with more than `max_unlabeled` images, a random sample is read.

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
    pool_rows = unlabeled_rows(len(pool), params)
    if len(pool_rows) < len(pool):
        logger.info(
            "pu_training.max_unlabeled: class prior and classifier are trained on a random sample "
            "of %s of the %s pool images",
            f"{len(pool_rows):,}",
            f"{len(pool):,}",
        )
    _, unlabeled = feature_tensors(pool, params.features, device, pool_rows)
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
    outputs = (read_log_odds(labeled), read_log_odds(pool, pool_rows))
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
