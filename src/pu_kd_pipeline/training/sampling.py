"""How the images of a manifest are drawn into batches: strata, probabilities, and what they imply.

A manifest without probabilities, or with equal ones for the pool, is shown in shuffled passes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.mixture import (
    RelatedSchedule,
    batch_counts,
    effective_number,
    related_schedule,
)
from pu_kd_pipeline.learning.strata import Stratum
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.storage.manifest import (
    MIXTURE,
    RELATED_PROBABILITY,
    ROLLING,
    SAMPLING_PROBABILITY,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Strata:
    """The strata of a training's batches.

    Attributes:
        strata: labeled images, related ones, and the whole pool.
        counts: (n_updates, 3) int64 images that each stratum gives to each batch.
    """

    strata: tuple[Stratum, Stratum, Stratum]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sampling:
    """How batches are drawn from (N,) images, labeled ones first.

    Attributes:
        probabilities: (N,) float64, of each image, with replacement; None: passes or strata.
        strata: None: all images are drawn in the same way.
        facts: for the student's card: shares, and how often an image is shown, see
            `manifest_sampling`.
    """

    probabilities: Tensor | None
    strata: Strata | None
    facts: dict[str, Any]


def manifest_sampling(
    rows: pd.DataFrame, attrs: Mapping[Any, Any], params: DistillationParams
) -> Sampling:
    """Return how the images of a manifest are drawn.

    - Without `labeled_share` and with probabilities for all images, each is drawn with its own.
    - Without `labeled_share` and with equal probabilities for the pool images, or none, each pass
      over all images shows every one once.
    - Otherwise in strata: of every batch `labeled_share` is labeled (null: as in the manifest),
      in shuffled passes, or in proportion to their probabilities where they have any. The rest is
      drawn from the pool in the same way, or, with `related_probability`, changes from related to
      uniform draws (`mixture.related_schedule`). With the attrs `rolling`, the pool part of the
      strata is that of the first phase, see `rolling.RollingDraws`.

    The share is ignored where all images are of one origin.

    Args:
        rows: the images to train on, labeled ones first.
        attrs: of the manifest; `mixture` and `rolling` hold the options of these rules.
        params: updates, batch size and labeled share.

    Returns:
        The sampling. Its facts are `labeled_share` of the batches, `manifest_labeled_share`,
        `labeled_shows` and `pool_shows` (how often an image of each origin is shown in the mean;
        None without such images), and for the rule `mixture` the shares of related images `first`,
        `last`, `end` and `mean`, `n_effective` and `shows` under `related`.

    Raises:
        InputError: probabilities are missing for some images, or cannot be drawn with.
    """
    is_labeled = (rows["origin"] == "labeled").to_numpy()
    n_labeled = int(is_labeled.sum())
    n_pool = len(rows) - n_labeled
    natural = n_labeled / len(rows)
    has_both = n_labeled > 0 and n_pool > 0
    share = natural
    if params.labeled_share is not None and has_both:
        share = params.labeled_share
        _report_rare_labeled_images(share, natural)
    labeled_p, pool_p = drawing_probabilities(rows, is_labeled)
    related = _related(rows, ~is_labeled)
    # The rule `rolling` draws its pool images in another way in every phase.
    is_rolling = attrs.get(ROLLING) is not None and n_pool > 0
    if is_rolling and related is not None:
        raise InputError(
            f"manifest: attrs[{ROLLING!r}] and {RELATED_PROBABILITY!r} exclude each other"
        )
    if related is None and not is_rolling and (params.labeled_share is None or not has_both):
        everything = _all_probabilities(labeled_p, pool_p, n_labeled, n_pool)
        if everything is not None:
            share = float(everything[:n_labeled].sum() / everything.sum())
        if everything is not None or pool_p is None:
            facts = _facts(share, natural, n_labeled, n_pool, params)
            return Sampling(everything, None, facts)

    facts = _facts(share, natural, n_labeled, n_pool, params)
    schedule = None
    if related is not None:
        schedule = mixture_schedule(related, share, attrs.get(MIXTURE), params)
        n_effective = effective_number(related.numpy())
        n_draws = _n_pool_draws(share, params)
        facts["related"] = {
            "first": schedule.first,
            "last": schedule.last,
            "end": schedule.end,
            "mean": schedule.mean,
            "n_effective": n_effective,
            "shows": schedule.mean * n_draws / n_effective,
        }
    for origin, values in (("labeled", labeled_p), ("pool", pool_p)):
        if values is not None and not values.sum() > 0:
            raise InputError(
                f"manifest: sampling_probability is 0 for every {origin} image, so that none can "
                "be drawn: correct it, or remove the column"
            )
    counts = batch_counts(
        params.n_updates, params.batch_size, labeled_share=share, schedule=schedule
    )
    strata = (
        Stratum(0, n_labeled, labeled_p),
        Stratum(n_labeled, n_pool, related),
        Stratum(n_labeled, n_pool, pool_p if related is None else None),
    )
    if is_rolling:
        facts[ROLLING] = attrs[ROLLING]
    return Sampling(None, Strata(strata, counts), facts)


def _report_rare_labeled_images(share: float, natural: float) -> None:
    """Warn where labeled images are shown less than half as often as in shuffled passes."""
    if natural > 2.0 * share:
        logger.warning(
            "%.0f %% of the images are labeled, and labeled_share shows them in %.0f %% of every "
            "batch, so that each is shown less often than an image of the pool. "
            "distillation.labeled_share=null shows them as often as their number asks for",
            100 * natural,
            100 * share,
        )


def mixture_schedule(
    related: Tensor, labeled_share: float, options: Any, params: DistillationParams
) -> RelatedSchedule:
    """Return how the share of related images changes over a training.

    Args:
        related: (n,) float64, summing to one, how related pool images are drawn.
        labeled_share: of every batch.
        options: the block `subset_materialization.mixture`, as a manifest's `attrs` hold it.
        params: updates and batch size.

    Raises:
        InputError: the options are missing, or no schedule can be made with them.
    """
    if not isinstance(options, Mapping):
        raise InputError(
            f"manifest: it has a column {RELATED_PROBABILITY!r}, and does not say how the share of "
            f"related images changes (`attrs[{MIXTURE!r}]`): another program wrote it. Write it "
            "again with `kedro run --pipeline=subset_materialization`, or remove the column"
        )
    try:
        return related_schedule(
            first=options["first"],
            max_repeats=options["max_repeats"],
            n_effective=effective_number(related.numpy()),
            n_draws=_n_pool_draws(labeled_share, params),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"manifest: attrs[{MIXTURE!r}] makes no schedule: {exc!r}") from exc


def _n_pool_draws(labeled_share: float, params: DistillationParams) -> float:
    return params.n_updates * params.batch_size * (1.0 - labeled_share)


def drawing_probabilities(
    rows: pd.DataFrame, is_labeled: NDArray[np.bool_]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the probabilities of labeled and pool images; None where they have none.

    Equal probabilities of pool images are none, if the labeled images have none.

    Args:
        rows: of a manifest, in any order.
        is_labeled: (N,) which of them are labeled.

    Raises:
        InputError: some images of an origin have one, and some have none.
    """
    if SAMPLING_PROBABILITY not in rows:
        return None, None
    values = rows[SAMPLING_PROBABILITY].to_numpy(dtype=np.float64, copy=True)
    labeled = values[is_labeled]
    pool = values[~is_labeled]
    is_missing = np.isnan(values)
    if is_missing.all():
        return None, None
    n_missing_labeled = int(is_missing[is_labeled].sum())
    n_missing_pool = int(is_missing[~is_labeled].sum())
    # A manifest states how pool images are drawn; labeled images need not have a probability.
    if n_missing_labeled not in (0, len(labeled)) or n_missing_pool:
        raise InputError(
            "manifest: some images have no sampling_probability: give it to all images, or to all "
            "pool images and no labeled one, or to none"
        )
    if len(labeled) > 0 and n_missing_labeled == 0:
        return _drawable(labeled), _drawable(pool)
    if len(labeled) == 0:
        return None, _drawable(pool)
    # Rounding of files apart, one value for all is no preference.
    if len(pool) == 0 or np.ptp(pool) <= 1e-9 * pool.max():
        return None, None
    return None, _drawable(pool)


def _drawable(values: NDArray[np.float64]) -> Tensor | None:
    if len(values) == 0:
        return None
    return torch.from_numpy(values)


def _all_probabilities(
    labeled: Tensor | None, pool: Tensor | None, n_labeled: int, n_pool: int
) -> Tensor | None:
    """Return the (N,) probabilities of all images; None if some have none."""
    parts = []
    for values, n in ((labeled, n_labeled), (pool, n_pool)):
        if n and values is None:
            return None
        if n and values is not None:
            parts.append(values)
    return torch.cat(parts)


def _related(rows: pd.DataFrame, is_pool: NDArray[np.bool_]) -> Tensor | None:
    """Return the (n,) probabilities of related draws, summing to one; None: no such draws."""
    if RELATED_PROBABILITY not in rows:
        return None
    values = rows[RELATED_PROBABILITY].to_numpy(dtype=np.float64, copy=True)[is_pool]
    total = values.sum()
    if len(values) == 0 or not total > 0:  # not above zero for nan, either
        raise InputError(
            f"manifest: the column {RELATED_PROBABILITY!r} has no probability for some pool image, "
            "or 0 for all of them: write it again with "
            "`kedro run --pipeline=subset_materialization`"
        )
    # Held-out images are missing here, so that the sum is below one.
    return torch.from_numpy(values / total)


def _facts(
    share: float, natural: float, n_labeled: int, n_pool: int, params: DistillationParams
) -> dict[str, Any]:
    n_shown = params.n_updates * params.batch_size
    facts: dict[str, Any] = {"labeled_share": share, "manifest_labeled_share": natural}
    facts["labeled_shows"] = share * n_shown / n_labeled if n_labeled else None
    facts["pool_shows"] = (1.0 - share) * n_shown / n_pool if n_pool else None
    return facts
