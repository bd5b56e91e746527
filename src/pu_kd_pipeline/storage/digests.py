"""Digests of values, and the files below a folder that count as its content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DIGEST_BYTES = 16


def json_digest(value: Any) -> str:
    """Return a digest of a value that JSON can write; what it cannot write counts as its `str`."""
    text = json.dumps(value, sort_keys=True, default=str)
    # names of files may hold bytes that are not UTF-8, which Python reads as lone surrogates
    encoded = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).hexdigest()


def files_below(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the files below a folder in order, except hidden ones."""
    if path.is_file():
        yield path
    elif path.is_dir():
        for folder, subfolders, names in os.walk(path):
            # Hidden files are unfinished ones: `storage.atomic` writes under such names.
            # Assigned in place, because os.walk reads the list to decide where to go next.
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith("."):
                    yield Path(folder, name)
