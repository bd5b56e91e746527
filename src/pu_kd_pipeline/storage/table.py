"""One Parquet file with facts about itself in its metadata (`DataFrame.attrs`)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.parquet_files import read_own_or_foreign_parquet, write_parquet

METADATA_KEY = b"pu_kd_pipeline"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table, as a whole or not at all.

    `table.attrs` (JSON values) becomes the metadata entry `pu_kd_pipeline`.
    """
    # pandas would write `attrs` into its own metadata as well.
    bare = table.copy(deep=False)
    bare.attrs = {}
    content = pa.Table.from_pandas(bare, preserve_index=False)
    metadata = dict(content.schema.metadata or {})
    metadata[METADATA_KEY] = json.dumps(dict(table.attrs)).encode()
    content = content.replace_schema_metadata(metadata)
    write_parquet(content, path)


def read_table(path: Path) -> pd.DataFrame:
    """Return a table that `write_table` wrote, with its facts in `attrs`.

    A table that another program wrote, such as an edited manifest, is read as well.

    Raises:
        InputError: the file is not there, is damaged, or is not a readable Parquet file.
    """
    try:
        content = read_own_or_foreign_parquet(path)
        table = content.to_pandas()
        metadata = content.schema.metadata or {}
        table.attrs = dict(json.loads(metadata.get(METADATA_KEY, b"{}")))
    except FileNotFoundError as exc:
        raise InputError(f"there is no table {path}") from exc
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{path} is not a readable Parquet file ({type(exc).__name__}: {exc}): delete it, and "
            "run the stage that wrote it again"
        ) from exc
    return table
