"""What MLflow's store contains after a test."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def rows(folder: Path, query: str, *values: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "mlflow" / "mlflow.db")) as store:
        return store.execute(query, values).fetchall()


def runs(folder: Path) -> dict[str, str]:
    return dict(rows(folder, "SELECT run_uuid, status FROM runs"))


def statuses(folder: Path) -> list[str]:
    return list(runs(folder).values())


def of_run(folder: Path, table: str, run_id: str) -> dict[str, str]:
    return dict(rows(folder, f"SELECT key, value FROM {table} WHERE run_uuid = ?", run_id))
