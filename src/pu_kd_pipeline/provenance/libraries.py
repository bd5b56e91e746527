"""Versions of the libraries that results depend on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata

# Libraries that compute: each may change any result with its version, also through another one.
LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "pillow",
    "scikit-learn",
)
# Libraries that check, log, or store what was computed. Any other counts for the nodes that use it.
_WITHOUT_EFFECT = (
    "fsspec",
    "kedro",
    "mlflow",
    "nvidia-ml-py",
    "omegaconf",
    "psutil",
    "pydantic",
    "pydantic_core",
    "ray",
    "rich",
    "safetensors",
    "tqdm",
    "typing_extensions",
)


def library_versions(others: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on.

    Args:
        others: distributions that the code of the result uses besides `LIBRARIES`.
    """
    python = sys.version_info
    # Without the patch level, which changes no result.
    versions = {"python": f"{python.major}.{python.minor}"}
    used = sorted(set(others) - {*versions, *LIBRARIES, *_WITHOUT_EFFECT})
    for name in (*LIBRARIES, *used):
        version = _version(name)
        if version is not None:
            versions[name] = version
    return versions


@cache
def _version(name: str) -> str | None:
    """Return the version of a distribution, which is loaded once in a process; None: no version."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
