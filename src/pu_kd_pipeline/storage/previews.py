"""What is stored, as a browser shows it: rows of tables, and pages without their styles."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_N_VALUES = 4  # of a vector
_BODY = re.compile(r"<body\b[^>]*>(.*)</body>", re.DOTALL | re.IGNORECASE)
# Styles of a page would also apply to the page that it is shown in.
_NOT_SHOWN = re.compile(
    r"<(style|script|template)\b.*?</\1\s*>|\sstyle=(\"[^\"]*\"|'[^']*')",
    re.DOTALL | re.IGNORECASE,
)


def table_preview(first_rows: pd.DataFrame) -> dict[str, Any]:
    """Return rows as JSON has them, with the keys `index`, `columns` and `data`.

    Of vectors, the first numbers and the length are shown.
    """
    rows = []
    for row in first_rows.itertuples(index=False, name=None):
        rows.append([_cell(value) for value in row])
    return {
        "index": list(range(len(rows))),
        "columns": [str(column) for column in first_rows.columns],
        "data": rows,
    }


def table_counts(files: Sequence[Path]) -> dict[str, int]:
    """Return the numbers of rows and columns of a table in Parquet files, from their footers."""
    import pyarrow.parquet as pq

    footers = [pq.read_metadata(file) for file in files]
    if not footers:
        return {"rows": 0}
    n_columns = len(footers[0].schema.to_arrow_schema().names)
    return {"rows": sum(footer.num_rows for footer in footers), "columns": n_columns}


def _cell(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return _vector_text(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None if math.isnan(value) else str(value)
        return float(f"{value:.6g}")
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _vector_text(values: Sequence[Any]) -> str:
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    if len(shown) <= _N_VALUES:
        return f"[{', '.join(shown)}]"
    return f"[{', '.join(shown[:_N_VALUES])}, … {len(shown)} values]"


def page_preview(text: str, *, is_html: bool) -> str:
    """Return HTML that may be shown inside of another page.

    Args:
        text: a page, or any other text.
        is_html: whether it is a page; other text is shown as it is.
    """
    if not is_html:
        return f"<pre>{html.escape(text)}</pre>"
    body = _BODY.search(text)
    return _NOT_SHOWN.sub("", body[1] if body else text)
