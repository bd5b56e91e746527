"""Where MLflow's database and files are, also after their folder was moved."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

# Every column with the address of a file or folder.
LOCATION_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
SECONDS_FOR_LOCK = 5.0


def follow_moved_folder(database: Path, artifacts: Path) -> None:
    """Correct the addresses in a database after its folder was moved or copied.

    MLflow stores them as absolute paths: it would write to the old place, and not find what was
    moved. Only addresses of a folder that lay next to the database are changed.

    Args:
        database: SQLite file of MLflow; nothing happens if there is none.
        artifacts: the folder next to it where artifacts are now.
    """
    if not database.is_file():
        return
    new = artifacts.as_uri()
    ending = f"/{artifacts.parent.name}/{artifacts.name}"
    with closing(sqlite3.connect(database, timeout=SECONDS_FOR_LOCK)) as store:
        try:
            query = "SELECT DISTINCT artifact_location FROM experiments"
            locations = [location or "" for (location,) in store.execute(query)]
        except sqlite3.OperationalError:
            # The tables do not exist yet.
            return
        for old in locations:
            if old != new and old.startswith("file:") and old.endswith(ending):
                with store:
                    _replace(store, old, new)


def _replace(store: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in LOCATION_COLUMNS:
        columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
        if column not in columns:
            # Other versions of MLflow have other tables.
            continue
        command = (
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?"
        )
        inside = f"{old}/"
        store.execute(command, (new, len(old) + 1, old, len(inside), inside))
