"""Memory of the test process, for tests that a hostile file does not unpack."""

from __future__ import annotations

import sys

import pytest


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    resource = pytest.importorskip("resource", reason="not available on Windows")
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # Linux counts kibibytes, macOS bytes.
    if sys.platform == "darwin":
        return peak
    return peak * 1024
