"""Class weights of a subset, from the teacher's answers on its images (Xu et al. 2019, Eq. 7 and 9-10)."""

from __future__ import annotations

import pandas as pd
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER
from pu_kd_pipeline.features.reading import logits_of
from pu_kd_pipeline.learning.class_weights import class_weights, teacher_class_mass, weight_vectors
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.storage.manifest import check_manifest, manifest_digest
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def weigh_classes(
    manifest: pd.DataFrame,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    class_names: tuple[str, ...],
    params: ClassWeightingParams,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row a class (teacher mass, raw and clipped weight), and the set W, one row a weight vector.

    Raises:
        InputError: the features lack images of the manifest, or it is none.
    """
    check_manifest(manifest)
    n_found, mass = 0, torch.zeros(len(class_names), dtype=torch.float64)
    for features, origin in ((labeled_features, "labeled"), (pool_features, "pool")):
        for logits in logits_of(features, set(manifest["id"][manifest["origin"] == origin])):
            mass += teacher_class_mass(logits).double()
            n_found += len(logits)
    if n_found != len(manifest):
        raise InputError(
            f"the features hold {n_found} of the manifest's {len(manifest)} images: they were made from other images. "
            "Rerun `kedro run --pipeline=feature_extraction` and the stages after it"
        )
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
    if makers := sorted(
        {
            features.facts[TEACHER]
            for features in (labeled_features, pool_features)
            if TEACHER in features.facts
        }
    ):
        table.attrs["teacher"] = " and ".join(makers)
    generator = torch.Generator().manual_seed(params.seed)
    vectors = weight_vectors(
        weighted.weights,
        n=params.n_vectors,
        epsilon=params.epsilon,
        mode=params.mode,
        generator=generator,
    )
    members = pd.DataFrame(
        vectors.numpy(), columns=[f"class_{index}" for index in range(len(class_names))]
    )
    members.attrs.update(table.attrs)
    return table, members
