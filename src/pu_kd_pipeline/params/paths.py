"""Paths in parameters: one way to read them, for every use."""

from __future__ import annotations

from pathlib import Path


def resolved_path(text: str) -> Path:
    """Return the path of a file or folder that a parameter names; `~` is the home folder.

    Raises:
        RuntimeError: there is no such home folder.
    """
    return Path(text).expanduser()
