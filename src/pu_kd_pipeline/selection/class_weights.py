"""Class weights of a subset, from the teacher's outputs on its images.

Xu et al. 2019, Eq. 7 and 9-10, and the modes that are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER
from pu_kd_pipeline.features.reading import iter_logits
from pu_kd_pipeline.learning.class_weights import (
    ClassWeights,
    class_weights,
    log_class_prior,
    mean_sample_weight,
    relative_weight_vectors,
    shrunk_class_weights,
    teacher_class_counts,
    teacher_class_mass,
    weight_vectors,
    with_mean_sample_weight_one,
)
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.storage.manifest import (
    LOGIT_SHIFT,
    MEAN_SAMPLE_WEIGHT,
    WEIGHTING,
    check_manifest,
    manifest_digest,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.sampling import drawing_probabilities


@dataclass
class _Counts:
    """How often each class is drawn, (K,) float64 each; an image counts as often as it is drawn."""

    n_classes: int
    soft: Tensor = field(init=False)
    hard: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # Double precision: single precision would lose the last images of a large pool.
        self.soft = torch.zeros(self.n_classes, dtype=torch.float64)
        self.hard = torch.zeros(self.n_classes, dtype=torch.float64)

    def add(self, logits: Tensor, draws: Tensor | None) -> None:
        """Add (n, K) logits; `draws` are (n,) float64, None: once each."""
        self.soft += teacher_class_mass(logits, draws=draws)
        self.hard += teacher_class_counts(logits, draws)


def compute_class_weights(
    manifest: pd.DataFrame,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    class_names: tuple[str, ...],
    params: ClassWeightingParams,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the class weights of a manifest and the set W of weight vectors.

    An image counts as often as the training draws it, by its `sampling_probability`, relative to
    the other images of its origin. In the mode paper all images count, in the others those of the
    pool: labeled images have the weight 1 there.

    Returns:
        One row per class: the teacher's mass, raw and clipped weight. One row per weight vector:
        a column per class. The `attrs` of both name the manifest, the teachers, the parameters that
        have an effect, the mean weight of the images that are weighted and, in the mode adjusted,
        the shift of the student's logits.

    Raises:
        InputError: the features lack images of the manifest, or it is not a manifest.
    """
    check_manifest(manifest)
    counts = _counts(manifest, labeled_features, pool_features, len(class_names), params)
    weighted = _WEIGHTS[params.mode](counts, params)
    table = pd.DataFrame(
        {
            "class_index": range(len(class_names)),
            "class_name": class_names,
            "teacher_mass": counts.soft.numpy(),
            "raw_weight": weighted.raw.numpy(),
            "weight": weighted.weights.numpy(),
            "is_clipped": weighted.is_clipped.numpy(),
        }
    )
    table.attrs["manifest"] = manifest_digest(manifest)
    table.attrs[WEIGHTING] = params.model_dump(mode="json", exclude=params.unread_keys())
    table.attrs[MEAN_SAMPLE_WEIGHT] = mean_sample_weight(weighted.weights, counts.hard)
    if params.mode == "adjusted":
        prior = log_class_prior(counts.soft, params.adjusted.smoothing)
        table.attrs[LOGIT_SHIFT] = (params.adjusted.strength * prior).tolist()
    teachers: set[str] = set()
    for features in (labeled_features, pool_features):
        if TEACHER in features.facts:
            teachers.add(features.facts[TEACHER])
    if teachers:
        # One of them unless the features were extracted by different teachers.
        table.attrs["teacher"] = " and ".join(sorted(teachers))
    vectors = _vectors(weighted.weights, counts, params)
    columns = [f"class_{index}" for index in range(len(class_names))]
    members = pd.DataFrame(vectors.numpy(), columns=columns)
    members.attrs.update(table.attrs)
    return table, members


# --- the weights of each mode ---


def _equal_weights(counts: _Counts, params: ClassWeightingParams) -> ClassWeights:
    weights = torch.ones(counts.n_classes, dtype=torch.float64)
    return ClassWeights(weights, weights, torch.zeros(counts.n_classes, dtype=torch.bool))


def _shrunk_weights(counts: _Counts, params: ClassWeightingParams) -> ClassWeights:
    options = params.shrunk
    return shrunk_class_weights(
        counts.soft, counts.hard, smoothing=options.smoothing, clip=options.clip
    )


def _paper_weights(counts: _Counts, params: ClassWeightingParams) -> ClassWeights:
    # In single precision, as in all versions: the weights stay what they were, bit for bit.
    result = class_weights(counts.soft.float(), clip=params.paper.clip)
    if params.paper.mean_weight == "classes":
        return result
    scaled = with_mean_sample_weight_one(result.weights, counts.hard)
    return result._replace(weights=scaled)


_WEIGHTS: dict[str, Callable[[_Counts, ClassWeightingParams], ClassWeights]] = {
    "none": _equal_weights,
    "shrunk": _shrunk_weights,
    "balanced": _equal_weights,
    "adjusted": _equal_weights,
    "paper": _paper_weights,
}


def _vectors(weights: Tensor, counts: _Counts, params: ClassWeightingParams) -> Tensor:
    """Return the set W, (1 + n_vectors, K) float64."""
    generator = torch.Generator().manual_seed(params.seed)
    if params.mode == "paper":
        return weight_vectors(
            weights,
            n=params.n_vectors,
            epsilon=params.paper.epsilon,
            perturbation=params.paper.perturbation,
            generator=generator,
        )
    return relative_weight_vectors(
        weights,
        counts.hard,
        n=params.n_vectors,
        epsilon=params.relative_epsilon,
        generator=generator,
    )


# --- counts ---


def _counts(
    manifest: pd.DataFrame,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    n_classes: int,
    params: ClassWeightingParams,
) -> _Counts:
    """Return how often the classes of the weighted images are drawn.

    All images are weighted in the mode paper, and where there is none of the pool; the weights then
    have no effect in the other modes.

    Raises:
        InputError: the features lack images of the manifest.
    """
    relative_draws = _relative_draws(manifest)
    has_pool = bool((manifest["origin"] == "pool").any())
    everything = _Counts(n_classes)
    of_pool = _Counts(n_classes)
    n_found = 0
    for features, origin in ((labeled_features, "labeled"), (pool_features, "pool")):
        ids = set(manifest["id"][manifest["origin"] == origin])
        draws_of_origin = relative_draws.get(origin)
        for found_ids, logits in iter_logits(features, ids):
            draws = None
            if draws_of_origin is not None:
                draws = torch.from_numpy(draws_of_origin.loc[found_ids].to_numpy(copy=True))
            everything.add(logits, draws)
            if origin == "pool":
                of_pool.add(logits, draws)
            n_found += len(logits)
    if n_found != len(manifest):
        raise InputError(
            f"the features hold {n_found} of the manifest's {len(manifest)} images: "
            "they were made from other images. "
            "Rerun `kedro run --pipeline=feature_extraction` and the stages after it"
        )
    if params.mode == "paper" or not has_pool:
        return everything
    return of_pool


def _relative_draws(manifest: pd.DataFrame) -> dict[str, pd.Series]:
    """Return by origin how often each image is drawn, by id: 1 in the mean over the origin.

    An origin whose images are drawn equally often is missing.
    """
    is_labeled = (manifest["origin"] == "labeled").to_numpy()
    labeled, pool = drawing_probabilities(manifest, is_labeled)
    draws = {}
    for origin, probabilities in (("labeled", labeled), ("pool", pool)):
        if probabilities is None:
            continue
        values = probabilities.numpy()
        if not values.sum() > 0:
            raise InputError(
                f"manifest: sampling_probability is 0 for every {origin} image, so that none can "
                "be drawn: correct it, or remove the column"
            )
        ids = manifest["id"][manifest["origin"] == origin]
        draws[origin] = pd.Series(values / np.mean(values), index=ids.to_numpy())
    return draws
