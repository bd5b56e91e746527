"""Which tracking store a run logs to, and whether it can: checked before the run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.masking import without_credentials
from pu_kd_pipeline.tracking.config import TrackingConfig

SQLITE_PREFIX = "sqlite:///"
DATABASE = "mlflow.db"
SERVER_SCHEMES = ("http", "https", "databricks", "databricks-uc", "uc")
# What SQLAlchemy and MLflow call the databases that MLflow can use.
DATABASE_SCHEMES = ("sqlite", "postgresql", "postgres", "mysql", "mssql")
MAX_PATH_BYTES = 1000
# SQLAlchemy decodes the path, from version 2.1 on.
PERCENT_CODE = re.compile("%[0-9a-fA-F]{2}")


def store_uri(config: TrackingConfig, folder: Path) -> str:
    """Return the address of the store, with its credentials.

    Args:
        config: where to log.
        folder: of the default SQLite file, absolute.
    """
    # An empty variable counts as not set.
    given_uri = os.environ.get("MLFLOW_TRACKING_URI") or config.tracking_uri
    return given_uri or f"{SQLITE_PREFIX}{folder / DATABASE}"


def earlier_store(uri: str, folder: Path, own_folder: Path) -> Path | None:
    """Return the folder with earlier runs of a data folder whose runs are now logged elsewhere.

    Args:
        uri: the store that is used.
        folder: of the default SQLite file, absolute.
        own_folder: where that file would be if every data folder had its own.

    Returns:
        None if there are no such runs, or the store is another one by choice.
    """
    is_default = uri == f"{SQLITE_PREFIX}{folder / DATABASE}"
    if is_default and own_folder != folder and (own_folder / DATABASE).is_file():
        return own_folder
    return None


def check_store(uri: str) -> None:
    """Check what can be known about a store without asking it.

    Raises:
        InputError: no run can be logged there; the message says what to use.
    """
    shown = without_credentials(uri)
    where = "set MLFLOW_TRACKING_URI, or tracking_uri in conf/base/mlflow.yml, to"
    scheme = urlsplit(uri).scheme.lower()
    if scheme in SERVER_SCHEMES or uri == "databricks":
        return
    dialect, _, _ = scheme.partition("+")
    if dialect not in DATABASE_SCHEMES:
        raise InputError(
            f"MLflow's address {shown!r} is not one of a server or a database, and MLflow no "
            f"longer logs to folders of files: {where} an address such as "
            "http://host:5000 or sqlite:////folder/mlflow.db, or to null"
        )
    path = uri.removeprefix(SQLITE_PREFIX)
    if path == uri:
        return
    if "?" in path:
        raise InputError(
            f"MLflow cannot open {shown!r}: what follows the question mark would not be part of "
            "the path. Choose a folder without one, or set `folder` in conf/base/mlflow.yml"
        )
    if PERCENT_CODE.search(path):
        raise InputError(
            f"MLflow cannot open {shown!r}: a percent sign and two digits would be read as another "
            "character. Rename the folder, or set `folder` in conf/base/mlflow.yml"
        )
    if not path.isprintable():
        raise InputError(
            f"MLflow cannot open {shown!r}: rename the folder so that it has printable characters "
            "only, or set `folder` in conf/base/mlflow.yml"
        )
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise InputError(f"MLflow cannot open {shown!r}: choose a folder with a shorter path")


def is_server(uri: str) -> bool:
    """Return whether a server stores the artifacts, wherever it likes."""
    return urlsplit(uri).scheme.lower() in SERVER_SCHEMES or uri == "databricks"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite address; None for any other one."""
    if not uri.startswith(SQLITE_PREFIX):
        return None
    path, _, _ = uri.removeprefix(SQLITE_PREFIX).partition("?")
    if not path or path.startswith(("file:", ":memory:")):
        return None
    return Path(path)
