"""One short text for all that made a result besides its inputs: code and library versions."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from pu_kd_pipeline.provenance.code_index import CodeIndex
from pu_kd_pipeline.provenance.libraries import library_versions


@cache
def maker_fingerprint(*makers: Any) -> str:
    """Return twelve hexadecimal digits that change with the code or a library that makes a result.

    Args:
        makers: the functions and classes of this project that make it; all that they call counts,
            see `CodeIndex.code_digests`.
    """
    code: dict[str, str] = {}
    for maker in makers:
        code |= _code_index().code_digests(maker)
    content = json.dumps([code, library_versions()], sort_keys=True)
    digest = hashlib.sha256(content.encode())
    return digest.hexdigest()[:12]


@cache
def _code_index() -> CodeIndex:
    """Return the index of this process: modules are parsed once."""
    return CodeIndex()
