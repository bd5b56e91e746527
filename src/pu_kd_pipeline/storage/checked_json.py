"""JSON files with a checksum of their content, which is verified when they are read."""

from __future__ import annotations

import json
from typing import Any

from pu_kd_pipeline.storage.digests import json_digest

_KEY = "checksum"


def to_checked_json(content: dict[str, Any]) -> str:
    """Return an object as JSON text with the additional entry `checksum`."""
    checked = {**content, _KEY: json_digest(content)}
    return json.dumps(checked, indent=2) + "\n"


def from_checked_json(text: str) -> dict[str, Any]:
    """Return the object of a text that `to_checked_json` wrote, without its checksum.

    Raises:
        ValueError: it is not such a text, or its checksum is missing or wrong.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or _KEY not in content:
        raise ValueError("it has no checksum: an earlier version or another program wrote it")
    checksum = content.pop(_KEY)
    if checksum != json_digest(content):
        raise ValueError("its checksum is wrong")
    return content
