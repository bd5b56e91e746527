"""How class weights are used in a training, as the attrs of its weight vectors describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.class_balance import balanced_probabilities
from pu_kd_pipeline.params.class_weighting import FORMER_MODES, MODES
from pu_kd_pipeline.storage.manifest import (
    LOGIT_SHIFT,
    MEAN_SAMPLE_WEIGHT,
    RELATED_PROBABILITY,
    ROLLING,
    SAMPLING_PROBABILITY,
    WEIGHTING,
    table_digest,
)

_TEACHER_CLASS = "teacher_class"
_FIX = "make them again with `kedro run --pipeline=class_weighting`"


@dataclass(frozen=True)
class Weighting:
    """What a training does with its class weights.

    Attributes:
        mode: see `params.class_weighting`. Vectors that do not state how they were made, those of a
            caller or of an earlier version, are used as in the mode paper.
        logit_shift: K numbers, added to the student's logits inside the loss; None: nothing is.
        max_factor: pool images are drawn evenly over the classes, up to this factor; None: they are
            drawn as the manifest describes it.
        facts: for the student's card.
    """

    mode: str
    logit_shift: tuple[float, ...] | None
    max_factor: float | None
    facts: dict[str, Any]


# Of objectives that read no class weights.
NO_WEIGHTING = Weighting(mode="none", logit_shift=None, max_factor=None, facts={})


def weighting_of(weight_vectors: pd.DataFrame) -> Weighting:
    """Return how weight vectors are used.

    Raises:
        InputError: their attrs cannot be used.
    """
    attrs = weight_vectors.attrs
    params = attrs.get(WEIGHTING) or {}
    mode = params.get("mode", "paper")
    if mode in FORMER_MODES:
        mode = "paper"
    if mode not in MODES:
        raise InputError(f"weight_vectors: the mode {mode!r} is not known: {_FIX}")
    facts = {
        "mode": mode,
        MEAN_SAMPLE_WEIGHT: attrs.get(MEAN_SAMPLE_WEIGHT),
        "vectors": table_digest(weight_vectors),
    }
    shift = None
    max_factor = None
    if mode == "adjusted":
        shift = _logit_shift(attrs, n_classes=weight_vectors.shape[1])
        facts[LOGIT_SHIFT] = list(shift)
    if mode == "balanced":
        max_factor = _max_factor(params)
    return Weighting(mode, shift, max_factor, facts)


def _logit_shift(attrs: Mapping[Any, Any], n_classes: int) -> tuple[float, ...]:
    try:
        shift = tuple(float(value) for value in attrs[LOGIT_SHIFT])
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"weight_vectors: attrs[{LOGIT_SHIFT!r}] is no shift: {_FIX}") from exc
    if len(shift) != n_classes or not np.isfinite(shift).all():
        raise InputError(
            f"weight_vectors: attrs[{LOGIT_SHIFT!r}] must hold {n_classes} finite numbers, one for "
            f"each class, got {shift}: {_FIX}"
        )
    return shift


def _max_factor(params: Mapping[str, Any]) -> float:
    try:
        return float(params["balanced"]["max_factor"])
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"weight_vectors: they do not state balanced.max_factor: {_FIX}") from exc


def balanced_rows(rows: pd.DataFrame, attrs: Mapping[Any, Any], max_factor: float) -> pd.DataFrame:
    """Return the rows of a manifest with probabilities that draw the classes of the pool evenly.

    Labeled images, and the share of pool images, are drawn as before.

    Args:
        rows: of a manifest, with `teacher_class` for every pool image.
        attrs: of the manifest.
        max_factor: see `class_balance.balanced_probabilities`.

    Raises:
        InputError: classes are missing, or the rule draws pool images in a way of its own.
    """
    is_pool = (rows["origin"] == "pool").to_numpy()
    if not is_pool.any():
        return rows
    if RELATED_PROBABILITY in rows or attrs.get(ROLLING) is not None:
        raise InputError(
            "class_weighting.mode: 'balanced' draws classes evenly, and the manifest's rule "
            f"({attrs.get('rule')}) draws pool images in a way of its own: choose another mode, or "
            "another rule"
        )
    if _TEACHER_CLASS not in rows or rows[_TEACHER_CLASS][is_pool].isna().any():
        raise InputError(
            "manifest: pool images without a teacher_class cannot be drawn evenly over the classes "
            "(class_weighting.mode is balanced): choose another mode, or write the manifest with "
            "`kedro run --pipeline=subset_materialization`"
        )
    probabilities = np.full(len(rows), np.nan)
    if SAMPLING_PROBABILITY in rows:
        probabilities = rows[SAMPLING_PROBABILITY].to_numpy(dtype=np.float64, copy=True)
    of_pool = probabilities[is_pool]
    if np.isnan(of_pool).all():
        of_pool = np.ones_like(of_pool)
    classes = rows[_TEACHER_CLASS][is_pool].to_numpy(dtype=np.int64)
    try:
        balanced = balanced_probabilities(of_pool, classes, max_factor=max_factor)
    except ValueError as exc:
        raise InputError(f"manifest: sampling_probability: {exc}") from exc
    # With the same sum: where labeled images have probabilities, too, their share stays.
    probabilities[is_pool] = of_pool.sum() * balanced
    return rows.assign(**{SAMPLING_PROBABILITY: probabilities})
