"""Versions of the libraries that results depend on."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import metadata

# Libraries that may change a result with their version; others only store or pass it on.
LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "pillow", "scikit-learn")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    python = sys.version_info
    # Without the patch level, which changes no result.
    versions = {"python": f"{python.major}.{python.minor}"}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
