"""Errors of MLflow as one line: short, without credentials, and with the way to fix them."""

from __future__ import annotations

from pu_kd_pipeline.masking import visible, without_credentials

MAX_REASON_LENGTH = 400
# Part of an error -> what to do about it.
REMEDIES = {
    "out-of-date database schema": "another version of MLflow wrote this database: back it up and "
    "run `mlflow db upgrade <address of the database>`, or install the newer MLflow",
    "Can't locate revision": "a newer MLflow wrote this database: install that version, or set "
    "another `tracking_uri` or `folder` in conf/base/mlflow.yml",
    "database is locked": "another process holds the SQLite file",
    "database or disk is full": "there is no space left on the disk of the SQLite file",
    "file is not a database": "move the damaged file away: the next run makes a new one",
    "malformed": "move the damaged file away: the next run makes a new one",
    "readonly database": "allow writing to the SQLite file and its folder",
    "unable to open database file": "allow writing to the folder of the SQLite file",
}
# MLflow answered, and will answer the same next time.
REFUSALS = frozenset(
    ["BAD_REQUEST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "RESOURCE_ALREADY_EXISTS"]
)


def is_refusal(error: BaseException) -> bool:
    """Return whether it is pointless to make the same call again."""
    return getattr(error, "error_code", None) in REFUSALS


def explained(error: BaseException, uri: str) -> str:
    """Return one line on an error, without the credentials in it or in the address of the store."""
    text = str(error).strip()
    first_line = text.split("\n")[0] or type(error).__name__
    line = visible(without_credentials(first_line, uri))[:MAX_REASON_LENGTH]
    for part, remedy in REMEDIES.items():
        if part in text and remedy not in text:
            return f"{line} ({remedy})"
    return line
