"""One Parquet file with facts about itself in its metadata (`DataFrame.attrs`), written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.atomic import replacing_file

METADATA_KEY = b"pu_kd_pipeline"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table; `table.attrs` (JSON values) becomes the metadata entry `pu_kd_pipeline`."""
    attrs = dict(table.attrs)
    bare = table.copy(deep=False)
    bare.attrs = {}
    content = pa.Table.from_pandas(bare, preserve_index=False)
    metadata = {**(content.schema.metadata or {}), METADATA_KEY: json.dumps(attrs).encode()}
    with replacing_file(path) as temporary:
        pq.write_table(
            content.replace_schema_metadata(metadata), temporary, write_page_checksum=True
        )


def read_table(path: Path) -> pd.DataFrame:
    """Return the table of `write_table`, with its facts in `attrs`.

    Raises:
        InputError: the file is not there or is not a readable Parquet file.
    """
    try:
        content = pq.read_table(path, page_checksum_verification=True)
        table = content.to_pandas()
        table.attrs = dict(json.loads((content.schema.metadata or {}).get(METADATA_KEY, b"{}")))
    except FileNotFoundError as exc:
        raise InputError(f"there is no table {path}") from exc
    except Exception as exc:  # a damaged file makes its reader raise nearly anything
        raise InputError(
            f"{path} is not a readable Parquet file ({type(exc).__name__}: {exc}): delete it, and run the stage that "
            "wrote it again"
        ) from exc
    return table
