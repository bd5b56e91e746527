"""Class weights of a subset, from the teacher's outputs on its images.

Xu et al. 2019, Eq. 7 and 9-10.
"""

from __future__ import annotations

import pandas as pd
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER
from pu_kd_pipeline.features.reading import iter_logits
from pu_kd_pipeline.learning.class_weights import (
    class_weights,
    teacher_class_mass,
    weight_vectors,
)
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.storage.manifest import WEIGHTING, check_manifest, manifest_digest
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def compute_class_weights(
    manifest: pd.DataFrame,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    class_names: tuple[str, ...],
    params: ClassWeightingParams,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the class weights of a manifest and the set W of weight vectors.

    Returns:
        One row per class: the teacher's mass, raw and clipped weight. One row per weight vector:
        a column per class. The `attrs` of both name the manifest, the teachers and the parameters.

    Raises:
        InputError: the features lack images of the manifest, or it is not a manifest.
    """
    check_manifest(manifest)
    mass = _teacher_mass(manifest, labeled_features, pool_features, len(class_names))
    weighted = class_weights(mass.float(), clip=params.clip)
    table = pd.DataFrame(
        {
            "class_index": range(len(class_names)),
            "class_name": class_names,
            "teacher_mass": mass.numpy(),
            "raw_weight": weighted.raw.numpy(),
            "weight": weighted.weights.numpy(),
            "is_clipped": weighted.is_clipped.numpy(),
        }
    )
    table.attrs["manifest"] = manifest_digest(manifest)
    table.attrs[WEIGHTING] = params.model_dump(mode="json")
    teachers: set[str] = set()
    for features in (labeled_features, pool_features):
        if TEACHER in features.facts:
            teachers.add(features.facts[TEACHER])
    if teachers:
        # One of them unless the features were extracted by different teachers.
        table.attrs["teacher"] = " and ".join(sorted(teachers))
    generator = torch.Generator().manual_seed(params.seed)
    vectors = weight_vectors(
        weighted.weights,
        n=params.n_vectors,
        epsilon=params.epsilon,
        mode=params.mode,
        generator=generator,
    )
    columns = [f"class_{index}" for index in range(len(class_names))]
    members = pd.DataFrame(vectors.numpy(), columns=columns)
    members.attrs.update(table.attrs)
    return table, members


def _teacher_mass(
    manifest: pd.DataFrame,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    n_classes: int,
) -> torch.Tensor:
    """Return (K,) float64, the teacher's probability of each class, summed over the manifest.

    Raises:
        InputError: the features lack images of the manifest.
    """
    # Double precision: single precision would lose the last images of a large pool.
    mass = torch.zeros(n_classes, dtype=torch.float64)
    n_found = 0
    for features, origin in ((labeled_features, "labeled"), (pool_features, "pool")):
        ids = set(manifest["id"][manifest["origin"] == origin])
        for logits in iter_logits(features, ids):
            mass += teacher_class_mass(logits).double()
            n_found += len(logits)
    if n_found != len(manifest):
        raise InputError(
            f"the features hold {n_found} of the manifest's {len(manifest)} images: "
            "they were made from other images. "
            "Rerun `kedro run --pipeline=feature_extraction` and the stages after it"
        )
    return mass
