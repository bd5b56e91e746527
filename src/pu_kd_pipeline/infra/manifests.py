"""What every reader of a manifest may take for granted, also of one that was edited by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

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
        raise InputError(f"manifest: there is no column {' and no '.join(map(repr, missing))}: {_MEND}")
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
        raise InputError(f"manifest: {len(again):,} ids are there twice, such as {again.iloc[0]!r}: {_MEND}")
    if "sampling_probability" in manifest:
        probabilities = manifest["sampling_probability"]
        if (
            not is_numeric_dtype(probabilities)
            or is_bool_dtype(probabilities)
            or not (probabilities.dropna() >= 0).all()
        ):
            raise InputError(f"manifest: the column 'sampling_probability' holds no probabilities: {_MEND}")
