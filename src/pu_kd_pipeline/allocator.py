"""How much freed memory a process keeps for its next arrays."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

# Options of glibc's mallopt (malloc.h), and their values in bytes: how much freed memory a process
# keeps, and the size of an array from which it gets memory of its own, which is not kept.
_MALLOC_OPTIONS = {-1: 2**28, -3: 2**25}
# With one of these, the user has decided.
ALLOCATOR_VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "LD_PRELOAD",
)


@cache
def keep_freed_memory() -> bool:
    """Make this process keep up to 256 MB of freed memory for its next arrays, where it can.

    glibc returns the memory of large arrays to the kernel when they are freed, and the kernel
    zeroes every page again at its next use: a fifth of the time of some trainings, and most of the
    time of loading batches (docs/results/speed.md). Results do not depend on it.

    Returns:
        Whether it does; not with another C library, or where the environment sets glibc's options.
    """
    mallopt = _function("mallopt")
    if mallopt is None or any(variable in os.environ for variable in ALLOCATOR_VARIABLES):
        return False
    # 1 is success.
    return all(mallopt(option, value) == 1 for option, value in _MALLOC_OPTIONS.items())


def return_freed_memory() -> None:
    """Return what is kept to the system, where it is: the next stage may need none of it."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Callable[..., Any] | None:
    """Return a function of glibc; None with another C library: macOS, musl, Windows."""
    with suppress(AttributeError, OSError, TypeError):
        function: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
        return function
    return None
