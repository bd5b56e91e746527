"""The manifest's schema and the checks of it and of what was made from it."""

from __future__ import annotations

import hashlib

import pandas as pd

from pu_kd_pipeline.errors import InputError

ORIGINS = ("labeled", "pool")
_MEND = "write it anew with `kedro run --pipeline=subset_materialization`, or mend it"


def check_manifest(manifest: pd.DataFrame) -> None:
    """Check that a manifest says of each image once which it is and where it comes from.

    Raises:
        InputError: the columns `id` (text, each once) and `origin` (labeled or pool) are missing or hold something
            else, or a `sampling_probability` is none.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if missing := [name for name in ("id", "origin") if name not in manifest.columns]:
        raise InputError(
            f"manifest: there is no column {' and no '.join(map(repr, missing))}: {_MEND}"
        )
    ids, origins = manifest["id"], manifest["origin"]
    if ids.ndim != 1 or origins.ndim != 1:
        raise InputError(f"manifest: two columns have one name: {_MEND}")
    if not all(isinstance(value, str) for value in ids):
        raise InputError(f"manifest: the column 'id' holds something else than text: {_MEND}")
    if not (is_origin := origins.isin(ORIGINS)).all():
        raise InputError(
            f"manifest: origin {origins[~is_origin].iloc[0]!r} is neither {' nor '.join(map(repr, ORIGINS))}: {_MEND}"
        )
    if (again := ids[ids.duplicated()]).size:
        raise InputError(
            f"manifest: {len(again):,} ids are there twice, such as {again.iloc[0]!r}: {_MEND}"
        )
    if "sampling_probability" in manifest:
        probabilities = manifest["sampling_probability"]
        if (
            not is_numeric_dtype(probabilities)
            or is_bool_dtype(probabilities)
            or not (probabilities.dropna() >= 0).all()
        ):
            raise InputError(
                f"manifest: the column 'sampling_probability' holds no probabilities: {_MEND}"
            )


def manifest_digest(manifest: pd.DataFrame) -> str:
    """Return a hash of which images a manifest holds."""
    return hashlib.sha256("\n".join(manifest["origin"] + " " + manifest["id"]).encode()).hexdigest()


def check_weights(weight_vectors: pd.DataFrame, manifest: pd.DataFrame, teacher: str) -> None:
    """Check that weight vectors that say what they were made from are this manifest's and this teacher's.

    Raises:
        InputError: they were made from others.
    """
    made_from = weight_vectors.attrs
    if made_from.get("manifest", digest := manifest_digest(manifest)) != digest:
        raise InputError(
            "weight_vectors: they were made for another manifest. Run `kedro run --pipeline=class_weighting` first, or "
            "`--pipeline=random_baseline` as a whole"
        )
    if made_from.get("teacher") not in (None, teacher):
        raise InputError(
            "weight_vectors: another network than teacher_model saw the classes that they weigh. Run the stages from "
            "`feature_extraction` on again"
        )


def table_digest(table: pd.DataFrame) -> str:
    """Return a hash of a table's rows, in order."""
    from pandas.util import hash_pandas_object

    return hashlib.sha256(hash_pandas_object(table).to_numpy().tobytes()).hexdigest()
