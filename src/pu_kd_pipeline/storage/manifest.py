"""The manifest's schema, and the checks of a manifest and of what was made from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.selection import RELATED

ORIGINS = ("labeled", "pool")
# In the attrs of weight vectors: the parameters that they were made with, the mean weight of an
# image that they are for, and what is added to the student's logits inside the loss.
WEIGHTING = "class_weighting"
MEAN_SAMPLE_WEIGHT = "mean_sample_weight"
LOGIT_SHIFT = "logit_shift"
CLASS_WEIGHTS = "class_weights"  # key of a card's `origin` and of metrics: how they were used
SAMPLING_PROBABILITY = "sampling_probability"
RELATED_PROBABILITY = "related_probability"
REASON = "reason"
ROLLING = "rolling"  # in the attrs: the options of that rule
MIXTURE = "mixture"  # in the attrs: the options of that rule, which distillation reads
_FIX = "write it again with `kedro run --pipeline=subset_materialization`, or correct it"


def check_manifest(manifest: pd.DataFrame) -> None:
    """Check that a manifest lists images once each, with the store that each comes from.

    Raises:
        InputError: the columns `id` (text, unique) and `origin` (labeled or pool) are missing or
            hold something else, or `sampling_probability` does not hold probabilities.
    """
    missing = [name for name in ("id", "origin") if name not in manifest.columns]
    if missing:
        names = " and no ".join(map(repr, missing))
        raise InputError(f"manifest: there is no column {names}: {_FIX}")
    ids = manifest["id"]
    origins = manifest["origin"]
    # With two columns of one name, pandas returns a table instead of a column.
    if ids.ndim != 1 or origins.ndim != 1:
        raise InputError(f"manifest: two columns have one name: {_FIX}")
    if not all(isinstance(value, str) for value in ids):
        raise InputError(f"manifest: the column 'id' holds something else than text: {_FIX}")
    is_origin = origins.isin(ORIGINS)
    if not is_origin.all():
        known = " nor ".join(map(repr, ORIGINS))
        raise InputError(
            f"manifest: origin {origins[~is_origin].iloc[0]!r} is neither {known}: {_FIX}"
        )
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise InputError(
            f"manifest: {len(repeated):,} ids are there twice, such as {repeated.iloc[0]!r}: {_FIX}"
        )
    for name in (SAMPLING_PROBABILITY, RELATED_PROBABILITY):
        if name in manifest:
            _check_probabilities(manifest[name], name)


def _check_probabilities(probabilities: pd.Series, name: str) -> None:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    # To pandas, booleans are numeric.
    is_number = is_numeric_dtype(probabilities) and not is_bool_dtype(probabilities)
    if not is_number or not (probabilities.dropna() >= 0).all():
        raise InputError(f"manifest: the column {name!r} holds no probabilities: {_FIX}")


def sampling_options(manifest: pd.DataFrame) -> dict[str, Any]:
    """Return the attrs of a manifest that change how its images are drawn."""
    options = {}
    if RELATED_PROBABILITY in manifest:
        options[MIXTURE] = manifest.attrs.get(MIXTURE)
    # Only manifests of the rule have it.
    if manifest.attrs.get(ROLLING) is not None:
        options[ROLLING] = manifest.attrs[ROLLING]
    return options


def prefers_images(manifest: pd.DataFrame) -> bool:
    """Return whether a manifest says which of its pool images are drawn more often than evenly."""
    return RELATED_PROBABILITY in manifest and REASON in manifest


def is_preferred(manifest: pd.DataFrame) -> pd.Series:
    """Return which rows of a manifest are pool images that its rule preferred.

    Of a rule that draws the images of the pool unevenly these are the images that it draws more
    often than evenly, whose reason is `RELATED`; of other rules all pool images of the manifest.
    """
    is_of_pool = manifest["origin"] == "pool"
    if not prefers_images(manifest):
        return is_of_pool
    return is_of_pool & (manifest[REASON] == RELATED)


def reason_counts(manifest: pd.DataFrame) -> dict[str, int] | None:
    """Return how many images a manifest holds for each reason, without what follows " for ".

    None for a manifest without reasons, of an earlier version or of another program.
    """
    if REASON not in manifest:
        return None
    texts = manifest[REASON].fillna("not stated").astype(str)
    kinds = texts.str.split(" for ", n=1).str[0]
    # In the order of the manifest: labeled images come first.
    counts = kinds.value_counts(sort=False)
    return {str(kind): int(count) for kind, count in counts.items()}


def images_digest(manifest: pd.DataFrame) -> str:
    """Return a hash of which images a manifest holds."""
    lines = manifest["origin"] + " " + manifest["id"]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def manifest_digest(manifest: pd.DataFrame) -> str:
    """Return a hash of which images a manifest holds, and of a schedule by which they are drawn.

    Without such a schedule it is that of the images.
    """
    if RELATED_PROBABILITY not in manifest and not sampling_options(manifest):
        return images_digest(manifest)
    digest = hashlib.sha256(images_digest(manifest).encode())
    if RELATED_PROBABILITY in manifest:
        # Labeled images have none, and there are several NaN.
        probabilities = manifest[RELATED_PROBABILITY].fillna(-1.0)
        digest.update(probabilities.to_numpy(dtype=float).tobytes())
    options = sampling_options(manifest)
    if options:
        digest.update(json.dumps(options, sort_keys=True).encode())
    return digest.hexdigest()


def check_weights(weight_vectors: pd.DataFrame, manifest: pd.DataFrame, teacher: str) -> None:
    """Check that weight vectors were made for this manifest and this teacher.

    Vectors that do not state what they were made for are accepted.

    Args:
        weight_vectors: the weights, with `manifest` and `teacher` in `attrs` if known.
        manifest: the manifest that they are used with.
        teacher: fingerprint of the teacher that they are used with.

    Raises:
        InputError: they were made for others.
    """
    made_for = weight_vectors.attrs
    digest = manifest_digest(manifest)
    if made_for.get("manifest", digest) != digest:
        raise InputError(
            "weight_vectors: they were made for another manifest. Run "
            "`kedro run --pipeline=class_weighting` first, or `--pipeline=random_baseline` as a "
            "whole"
        )
    if made_for.get("teacher") not in (None, teacher):
        raise InputError(
            "weight_vectors: another network than teacher_model saw the classes that they weigh. "
            "Run the stages from `feature_extraction` on again"
        )


def table_digest(table: pd.DataFrame) -> str:
    """Return a hash of a table's rows, in order."""
    from pandas.util import hash_pandas_object

    row_hashes = hash_pandas_object(table).to_numpy()
    return hashlib.sha256(row_hashes.tobytes()).hexdigest()
