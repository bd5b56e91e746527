"""One short text for all that made a result besides its inputs: code and library versions."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from typing import Any

from pu_kd_pipeline.provenance.code_index import CodeIndex
from pu_kd_pipeline.provenance.libraries import library_versions

logger = logging.getLogger(__name__)
_indexes = [CodeIndex()]


def maker_fingerprint(*makers: Any) -> str:
    """Return twelve hexadecimal digits that change with the code or a library that makes a result.

    Where it is not known which code runs, they differ each time.

    Args:
        makers: the functions and classes of this project that make it; all that they call counts,
            see `CodeIndex.code_digests`.
    """
    digests: dict[str, str] = {}
    distributions: set[str] = set()
    values = []
    for maker in makers:
        code = current_index().code(maker)
        if code.unknown:
            logger.warning("made by %s: it will not be used again", code.unknown)
            values.append(uuid.uuid4().hex)
        digests |= code.digests
        distributions |= code.distributions
        values.append(repr(sorted(code.values.items())))
    content = json.dumps([digests, library_versions(distributions), values], sort_keys=True)
    digest = hashlib.sha256(content.encode())
    return digest.hexdigest()[:12]


def unknown_code(maker: Any) -> str:
    """Return why it is not known which code a function or class runs; empty if it is known."""
    return current_index().code(maker).unknown


def current_index() -> CodeIndex:
    """Return the index of this process: modules are parsed again only after a change."""
    if not _indexes[-1].is_current():
        _indexes[:] = [CodeIndex()]
    return _indexes[-1]
