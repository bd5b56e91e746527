"""JSON files with a digest of their own content, so that a damaged one is not taken for a value."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pu_kd_pipeline.storage.atomic import replacing_file


def write_checked(file: Path, value: Any) -> None:
    """Write a value that JSON can write, after a line with the digest of its text."""
    text = json.dumps(value, indent=0)
    with replacing_file(file) as temporary:
        temporary.write_text(f"{_digest(text)}\n{text}", encoding="ascii", newline="\n")


def read_checked(file: Path) -> Any:
    """Return the value in a file; None if it is missing, damaged, or cannot be read."""
    try:
        content = file.read_bytes().decode("ascii")
        digest, _, text = content.partition("\n")
        if digest != _digest(text):
            return None
        return json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()
